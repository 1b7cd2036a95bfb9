// The selection of minitrans.encoder.selection once more, so that the slider can decide in the page. A test compares the two.
"use strict";

// How many of n tokens stay at least: max(s, n - floor(q n)), and all n where n <= s.
function keptCount(n, quantile, minTokens) {
  const givenUp = Math.floor(quantile * n + 1e-9);
  return Math.min(n, Math.max(minTokens, n - givenUp));
}

// Which of the scores stay: true or false for each; their order, best first; the lowest that stays on its merit (null
// where nothing goes, or all of these).
function select(scores, quantile, minTokens, options) {
  const n = scores.length;
  const guarded = (i) => i < options.prefix || i >= n - options.suffix;
  const least = keptCount(n, quantile, Math.max(minTokens, options.prefix + options.suffix));
  const keys = scores.map((score, i) => (guarded(i) ? Infinity : score));
  const order = keys.map((_, i) => i).sort((i, j) => keys[j] - keys[i] || i - j); // of equals the earlier first
  const stays = new Array(n).fill(false);
  order.forEach((i, rank) => {
    stays[i] = rank < least || (options.threshold !== null && keys[i] >= Math.fround(options.threshold));
  });
  const earned = scores.filter((_, i) => stays[i] && !guarded(i));
  const threshold = stays.includes(false) && earned.length ? Math.min(...earned) : null;
  return { stays, order, threshold };
}
