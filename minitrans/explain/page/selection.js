// The selection of minitrans.encoder.selection once more, so that the slider can decide in the page. A test compares the two.
"use strict";

const TOP = 16; // a score that is higher costs no more,
const LOWEST = -87; // and one that is so far below it no less
const f32 = Math.fround; // after every step, as Python rounds

// How many of n tokens stay at least: max(s, n - floor(q n)), and all n where n <= s.
function keptCount(n, quantile, minTokens) {
  const givenUp = Math.floor(quantile * n + 1e-9);
  return Math.min(n, Math.max(minTokens, n - givenUp));
}

// What giving up the first, the first two, ... of some tokens costs, from their scores in the order in which they go.
function costs(scores) {
  let total = 0;
  return scores.map((score, i) => {
    total = f32(total + f32(Math.exp(Math.max(LOWEST, Math.min(f32(score - TOP), 0)))));
    return f32(total * (i + 1));
  });
}

// The cost at which a text of n tokens is expected to turn so far. The map has three weights and a bias.
function budgetOf([onCost, linear, square, bias], degrees, n) {
  const log = Math.log(Math.max(n, 1));
  const cost = (Math.log(degrees) - bias - linear * log - square * log ** 2) / onCost - TOP;
  return f32(Math.exp(Math.min(-LOWEST, Math.max(LOWEST, cost))));
}

// The other way round: the degrees that a cost is expected to turn a text of n tokens.
function expectedTurn([onCost, linear, square, bias], cost, n) {
  const log = Math.log(n);
  return Math.min(180, Math.exp(onCost * (Math.log(cost) + TOP) + linear * log + square * log ** 2 + bias));
}

// Which of the scores stay: true or false for each; their order, best first; how many stay at least; what those that go
// cost; the lowest that stays on its merit (null where nothing goes, or all of these).
// The budget is what those that go may cost together, null for no end.
function select(scores, quantile, minTokens, options) {
  const n = scores.length;
  const guarded = (i) => i < options.prefix || i >= n - options.suffix;
  const least = keptCount(n, quantile, Math.max(minTokens, options.prefix + options.suffix));
  const keys = scores.map((score, i) => (guarded(i) ? Infinity : score));
  const order = keys.map((_, i) => i).sort((i, j) => keys[j] - keys[i] || i - j); // of equals the earlier first
  const spent = costs(order.map((i) => keys[i]).reverse()).reverse(); // by rank: with all that rank lower
  const stays = new Array(n).fill(false);
  order.forEach((i, rank) => {
    stays[i] = rank < least || (options.budget !== null && spent[rank] > options.budget);
  });
  const first = order.findIndex((i) => !stays[i]); // the best of those that go
  const earned = scores.filter((_, i) => stays[i] && !guarded(i));
  const threshold = first >= 0 && earned.length ? Math.min(...earned) : null;
  return { stays, order, least, cost: first < 0 ? 0 : spent[first], threshold };
}
