// A long list of rows of any height, of which only those near the window are in the document.

import { Component, html } from "./preact.js";

const ALL_UP_TO = 250; // rows; fewer are not worth a window
const OVERSCAN = 900; // pixels, above and below
const GAP = 12; // between sections; the same as in the style sheet
const NEAR_END = 24;
const TOUCH_MS = 1_000;
const TOUCHES = ["wheel", "touchmove", "keydown", "pointerdown"];

/**
 * props: `sections` [{ key, attributes, rows: [{ key, token, estimate, view() }] }]; the first row of a section that
 * has attributes is its head, and stays while any of its rows is shown. `follow`: keep to the end; `onFollow(isOn)` is told
 * when the reader leaves the end or comes back. `lastActive`: the section to keep in view; null: the last one.
 */
export class Scroller extends Component {
  constructor(props) {
    super(props);
    this.heights = new Map();
    this.element = null;
    this.lastTop = 0;
    this.touchedAt = 0;
    this.frame = null;
    this.observer = new ResizeObserver((entries) => this.measure(entries));
    this.takeElement = (element) => this.attach(element);
    this.onScroll = () => this.scrolled();
    this.onTouch = () => {
      this.touchedAt = performance.now();
    };
  }

  attach(element) {
    if (!element || element === this.element) return;
    this.element = element;
    for (const kind of TOUCHES) element.addEventListener(kind, this.onTouch, { passive: true });
    this.observer.observe(element);
  }

  componentDidMount() {
    this.scheduleRender();
    this.keepToEnd();
  }

  componentDidUpdate() {
    this.keepToEnd();
  }

  componentWillUnmount() {
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
  }

  measure(entries) {
    let isNews = false;
    for (const { target, borderBoxSize } of entries) {
      const key = target.dataset.row;
      const height = key === undefined ? target.clientHeight : borderBoxSize[0].blockSize;
      if (!target.isConnected || Math.abs((this.heights.get(key) ?? -1) - height) < 0.5) continue;
      this.heights.set(key, height);
      isNews = true;
    }
    if (isNews) this.scheduleRender();
  }

  scheduleRender() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.forceUpdate();
    });
  }

  scrolled() {
    const { follow, onFollow } = this.props;
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    const byReader = performance.now() - this.touchedAt < TOUCH_MS;
    if (byReader && follow && scrollTop < this.lastTop - 2) onFollow(false);
    const isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_END;
    if (byReader && !follow && scrollTop > this.lastTop && isAtEnd) onFollow(true);
    this.lastTop = scrollTop;
    this.scheduleRender();
  }

  keepToEnd() {
    if (!this.props.follow || !this.element) return;
    const { clientHeight, scrollHeight } = this.element;
    const end = this.props.lastActive === null ? scrollHeight : this.endOf(this.props.lastActive) + 120;
    const top = Math.max(0, Math.min(end, scrollHeight) - clientHeight);
    if (Math.abs(this.element.scrollTop - top) > 1) this.element.scrollTop = top;
    this.lastTop = this.element.scrollTop;
  }

  endOf(sectionKey) {
    const place = this.flat.findLastIndex((row) => row.section.key === sectionKey);
    return place === -1 ? this.offsets.at(-1) : this.offsets[place + 1];
  }

  /** Where each row begins, and where the last one ends. */
  lay() {
    this.flat = [];
    for (const section of this.props.sections) {
      section.rows.forEach((row, place) => {
        this.flat.push({
          row,
          section,
          isHead: place === 0 && section.attributes,
          isLast: place === section.rows.length - 1,
        });
      });
    }
    this.offsets = new Array(this.flat.length + 1);
    let top = 0;
    this.flat.forEach(({ row, isLast }, place) => {
      this.offsets[place] = top;
      top += this.heightOf(row) + (isLast ? GAP : 0);
    });
    this.offsets[this.flat.length] = top;
  }

  heightOf(row) {
    return this.heights.get(row.key) ?? row.estimate;
  }

  /** The places of the first row shown, and of the one after the last. */
  range() {
    if (this.flat.length <= ALL_UP_TO) return [0, this.flat.length];
    const height = this.element?.clientHeight || 800;
    const top = this.element ? this.element.scrollTop : 0;
    const first = Math.max(0, this.placeAt(top - OVERSCAN) - 1);
    const last = Math.min(this.flat.length, this.placeAt(top + height + OVERSCAN) + 1);
    return [first, last];
  }

  placeAt(pixel) {
    let low = 0;
    let high = this.flat.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.offsets[middle + 1] < pixel) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  render({ label, testid }) {
    this.lay();
    const [first, last] = this.range();
    const shown = this.shownSections(first, last);
    const cutHead = shown[0]?.cutHead ? this.heightOf(shown[0].section.rows[0]) : 0;
    const above = Math.max(0, (this.offsets[first] ?? 0) - cutHead);
    const below = Math.max(0, this.offsets[this.flat.length] - (this.offsets[last] ?? 0));
    return html`<div
      class="scroller"
      ref=${this.takeElement}
      onScroll=${this.onScroll}
      tabindex="0"
      role="region"
      aria-label=${label}
      data-testid=${testid}
    >
      <div class="spacer" key="above" style=${{ height: `${above}px` }}></div>
      ${shown.map((one) => this.sectionView(one))}
      <div class="spacer" key="below" style=${{ height: `${below}px` }}></div>
    </div>`;
  }

  shownSections(first, last) {
    const shown = [];
    for (let place = first; place < last; place += 1) {
      const { row, section, isHead } = this.flat[place];
      let current = shown.at(-1);
      if (current?.section !== section) {
        current = { section, rows: [], cutHead: Boolean(section.attributes) && !isHead };
        if (current.cutHead) current.rows.push(section.rows[0]);
        shown.push(current);
      }
      current.rows.push(row);
    }
    return shown;
  }

  sectionView({ section, rows }) {
    return html`<section key=${section.key} ...${section.attributes ?? { class: "loose" }}>
      ${rows.map((row) => html`<${Row} key=${row.key} row=${row} token=${row.token} observer=${this.observer} />`)}
    </section>`;
  }
}

/** One row; rendered again only when its token is another one. */
class Row extends Component {
  constructor(props) {
    super(props);
    this.takeElement = (element) => {
      if (element) this.element = element;
    };
  }

  shouldComponentUpdate(next) {
    return next.token !== this.props.token;
  }

  componentDidMount() {
    this.props.observer.observe(this.element);
  }

  componentWillUnmount() {
    this.props.observer.unobserve(this.element);
  }

  render({ row }) {
    return html`<div class=${`row ${row.kind ?? ""}`} ref=${this.takeElement} data-row=${row.key}>${row.view()}</div>`;
  }
}
