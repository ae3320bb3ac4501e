// The search runs in a worker, which browsers forbid pages of the file system: there a hidden frame takes its place.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const scope = frame.contentWindow;
      const load = (source) =>
        new Promise((done, failed) => {
          const script = scope.document.createElement("script");
          Object.assign(script, { src: new URL(source, document.baseURI), onload: done, onerror: failed });
          scope.document.body.append(script);
        });
      scope.importScripts = (...sources) => Promise.all(sources.map(load));
      scope.postMessage = (data) => this.receive(data);
      this.scope = load(url).then(() => scope);
      this.frame = frame;
    }
    receive(data) {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      this.onmessage?.(event);
    }
    async postMessage(data) {
      (await this.scope).dispatchEvent(new MessageEvent("message", { data }));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
