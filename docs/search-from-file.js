// The site's search runs in a worker and fetches its index, which browsers do not allow to pages that were opened as
// files. There this takes the worker's place: scripts may be loaded from files, and search_index.js holds the index.
if (location.protocol === "file:") {
  window.Worker = function (path) {
    const worker = this, folder = path.slice(0, path.lastIndexOf("/") + 1);
    const load = (name) => new Promise((loaded, failed) => {
      const script = document.createElement("script");
      Object.assign(script, {src: folder + name, onload: loaded, onerror: failed});
      document.head.append(script);
    });
    const places = {};
    let index;
    const start = () => Promise.all(["lunr.js", "search_index.js"].map(load)).then(() => {
      index = lunr(function () {
        this.ref("location");
        this.field("title");
        this.field("text");
        for (const place of searchIndex.docs) {
          this.add(places[place.location] = place);
        }
      });
      worker.onmessage({data: {config: searchIndex.config}});
      worker.onmessage({data: {allowSearch: true}});
    });
    const found = (query) => index.search(query).map(({ref}) => ({...places[ref], summary: places[ref].text.slice(0, 200)}));
    worker.postMessage = (message) => message.init ? start() : worker.onmessage({data: {results: found(message.query)}});
  };
}
