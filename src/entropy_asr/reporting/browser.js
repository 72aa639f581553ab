// The error browser: filters what browser.py put into the page, and marks errors. No library, no network; the address keeps the choice.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("browser-data").textContent);
  const form = document.getElementById("browser-form");
  const list = document.getElementById("browser-list");
  const summary = document.getElementById("browser-summary");
  const more = document.getElementById("browser-more");
  const PAGE = 40;
  let found = [];
  let shown = 0;

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const option = (select, value, label) => {
    const made = element("option", label);
    made.value = value;
    select.append(made);
  };
  data.sets.forEach((set) => option(form.elements.set, set.name, `${set.name} (${set.metric})`));
  data.systems.forEach((system) => option(form.elements.system, system, system));

  const errorsOf = (edits) => edits.reduce((sum, edit) => sum + (typeof edit === "string" ? 1 : 0), 0);
  const wide = (text, at) => text.codePointAt(at) > 0x2e7f;
  // Spaces between words, none inside Mandarin; in mixed speech none between two hanzi.
  const gap = (set, before, after) =>
    set.close || !before || (wide(before, before.length - 1) && wide(after, 0)) ? "" : " ";
  const joined = (set, tokens) => tokens.reduce((text, token) => text + gap(set, text, token) + token, "");

  const heardText = (set, tokens, edits) => {
    const heard = [];
    let at = 0;
    for (const edit of edits) {
      if (typeof edit === "number") heard.push(...tokens.slice(at, (at += edit)));
      else if (edit[0] === "+") heard.push(edit.slice(1));
      else if (at++ >= 0 && edit[0] === "~") heard.push(edit.slice(1));
    }
    return joined(set, heard);
  };

  const marked = (set, tokens, edits) => {
    const line = element("span");
    line.lang = set.lang;
    let at = 0;
    let last = "";
    const put = (node, first, end) => {
      line.append(gap(set, last, first), node);
      last = end;
    };
    let group = null;
    const close = () => {
      if (!group) return;
      const { left, right } = group;
      group = null;
      const [said, heard] = [joined(set, left), joined(set, right)];
      if (said && heard) {
        const both = element("span", undefined, "sub");
        both.append(element("del", said), element("ins", heard));
        put(both, said, heard);
      } else put(element(said ? "del" : "ins", said || heard), said || heard, said || heard);
    };
    for (const edit of edits) {
      if (typeof edit === "number") {
        close();
        const text = joined(set, tokens.slice(at, at + edit));
        at += edit;
        put(document.createTextNode(text), text, text);
      } else {
        const kind = edit[0];
        if (group && group.kind !== kind) close();
        group = group || { kind, left: [], right: [] };
        if (kind !== "+") group.left.push(tokens[at++]);
        if (kind !== "-") group.right.push(edit.slice(1));
      }
    }
    close();
    return line;
  };

  const choice = () => {
    const value = (name) => form.elements[name].value.trim();
    return {
      set: value("set"),
      system: value("system"),
      min: value("min") === "" ? 0 : Number(value("min")),
      max: value("max") === "" ? Infinity : Number(value("max")),
      order: value("order"),
      q: value("q").toLowerCase(),
    };
  };

  const search = () => {
    const { set: name, system: only, min, max, order, q } = choice();
    const results = [];
    for (const set of data.sets) {
      if (name && set.name !== name) continue;
      const systems = Object.keys(set.heard).filter((system) => !only || system === only);
      set.ids.forEach((id, i) => {
        const counts = systems.map((system) => errorsOf(set.heard[system][i]));
        if (!counts.some((count) => count >= min && count <= max)) return;
        const tokens = set.references[i].split(" ");
        if (q) {
          const said = [id, set.speakers[i], joined(set, tokens)];
          const heard = systems.map((system) => heardText(set, tokens, set.heard[system][i]));
          if (![...said, ...heard].some((text) => text.toLowerCase().includes(q))) return;
        }
        results.push({ set, i, id, tokens, systems, counts, worst: Math.max(...counts), spread: Math.max(...counts) - Math.min(...counts) });
      });
    }
    const keys = { worst: (r) => -r.worst, rate: (r) => -r.worst / r.tokens.length, spread: (r) => -r.spread, id: () => 0 };
    const key = keys[order] || keys.worst;
    return results.sort((a, b) => key(a) - key(b) || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
  };

  const card = ({ set, i, id, tokens, systems, counts }) => {
    const item = element("li");
    const seconds = set.seconds[i] ? `, ${set.seconds[i].toFixed(1)} s` : "";
    item.append(element("small", `${id}${set.speakers[i] ? ", " + set.speakers[i] : ""}${seconds}, ${tokens.length} ${set.metric === "CER" ? "characters" : "words"}`));
    const said = element("div", joined(set, tokens), "said");
    said.lang = set.lang;
    item.append(said);
    systems.forEach((system, k) => {
      const row = element("div", undefined, "heard");
      row.append(element("span", system, "who"), element("span", String(counts[k]), counts[k] ? "errors" : "errors none"), marked(set, tokens, set.heard[system][i]));
      item.append(row);
    });
    return item;
  };

  const extend = () => {
    list.append(...found.slice(shown, shown + PAGE).map(card));
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown >= found.length;
    more.textContent = `Show more (${found.length - shown} left)`;
  };

  const refresh = () => {
    found = search();
    shown = 0;
    list.replaceChildren();
    const total = data.sets.reduce((sum, set) => sum + set.ids.length, 0);
    summary.textContent = `${found.length} of ${total} utterances.`;
    extend();
  };

  const toAddress = () => {
    const chosen = new URLSearchParams();
    for (const field of form.elements) if (field.name && field.value !== field.dataset.usual) chosen.set(field.name, field.value);
    history.replaceState(null, "", `#browser${chosen.size ? "?" + chosen : ""}`);
  };
  const fromAddress = () => {
    const [place, chosen] = location.hash.split("?");
    if (place !== "#browser") return;
    for (const [name, value] of new URLSearchParams(chosen || "")) if (form.elements[name]) form.elements[name].value = value;
    document.getElementById("browser").scrollIntoView();
  };

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    toAddress();
    refresh();
  });
  more.addEventListener("click", extend);
  window.addEventListener("hashchange", () => {
    fromAddress();
    refresh();
  });
  fromAddress();
  refresh();
})();
