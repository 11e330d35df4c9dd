// Runs the script of the chat page against a server, with as much of a document as it uses.
//   node page.mjs URL
import assert from "node:assert";
import vm from "node:vm";

const base = process.argv[2];
const html = await (await fetch(base + "/")).text();
const script = html.match(/<script>([\s\S]*)<\/script>/)[1];

class Element {
  constructor(name) { Object.assign(this, { name, children: [], attributes: {}, value: "", text: "", hidden: false }); }
  append(...children) { this.children.push(...children); }
  replaceChildren(...children) {
    this.children = children;
    if (this.name === "select") this.value = children[0]?.value ?? "";
  }
  setAttribute(key, value) { this.attributes[key] = value; }
  removeAttribute(key) { delete this.attributes[key]; }
  focus() { document.activeElement = this; }
  click() { return this.onclick?.({}); }
  requestSubmit() { this.onsubmit({ preventDefault() {} }); }
  set textContent(text) { this.text = text; this.children = []; }
  get textContent() { return this.text + this.children.map(c => typeof c === "string" ? c : c.textContent).join(""); }
  all(name) { return this.children.flatMap(c => typeof c === "string" ? [] : [...(c.name === name ? [c] : []), ...c.all(name)]); }
}
const byId = {};
for (const [, name, id] of html.matchAll(/<(\w+)[^>]*\bid="(\w+)"/g)) byId[id] = new Element(name);
const document = {
  activeElement: null,
  getElementById: id => byId[id] ?? assert.fail(`no element ${id}`),
  createElement: name => new Element(name),
  addEventListener() {},
};
byId.temperature.value = "0";
byId.tokens.value = "12";
const context = vm.createContext({
  document, performance, AbortController, TextDecoderStream, JSON, Math, Number, Promise, Error, Object,
  fetch: (path, options = {}) => fetch(base + path, options), console,
});
vm.runInContext(script, context);
const until = async (what, reached) => {
  for (let tries = 0; tries < 2000; tries++) {
    if (reached()) return;
    await new Promise(done => setTimeout(done, 5));
  }
  assert.fail(`waited for ${what}`);
};
const [left, right] = byId.sides.children;
const models = left.all("select")[0];
await until("the models", () => models.children.length > 0);

const idle = () => byId.stop.disabled !== false;
const send = async text => {
  byId.text.value = text;
  byId.say.requestSubmit();
  await until("an answer", idle);
};
const entries = side => side.all("ol")[0].children.map(entry => entry.all("div").map(part => part.textContent));

// It streams what the server says, and why it ended.
await send("The people");
const ask = await fetch(base + "/v1/chat/completions", { method: "POST", body: JSON.stringify({
  messages: [{ role: "user", content: "The people" }], temperature: 0, max_completion_tokens: 12 }) });
const expected = (await ask.json()).choices[0].message.content;
let [user, answer] = entries(left);
assert.equal(user[1], "The people");
assert.equal(answer[0], models.value);
assert.equal(answer[1], expected);
assert.match(answer[2], /12 tokens.*most tokens were reached|the model ended it/);
assert.ok(byId.status.textContent.includes(expected), "a screen reader hears the answer");

// A message is edited and sent again: what followed it is gone.
await send("of the");
assert.equal(entries(left).length, 4);
left.all("ol")[0].children[0].all("button")[0].click();
left.all("textarea")[0].value = "Call me";
left.all("form")[0].onsubmit({ preventDefault() {} });
await until("an answer", idle);
assert.equal(entries(left).length, 2);
assert.equal(entries(left)[0][1], "Call me");

// Two models side by side get the same message.
byId.compare.checked = true;
byId.compare.onchange();
assert.equal(right.hidden, false);
await send("The people");
assert.deepEqual(entries(left)[1].slice(1, 2), [expected]);
assert.deepEqual(entries(right)[1].slice(1, 2), [expected]);

// An error is said in the conversation.
byId.tokens.value = "100000";
await send("more");
assert.match(entries(left).at(-1)[2], /maximum context length/);

// It stops.
byId.clear.click();
byId.compare.checked = false;
byId.tokens.value = "40";
byId.text.value = "The";
byId.say.requestSubmit();
byId.stop.click();
await until("the end", idle);
assert.match(entries(left)[1][2], /you stopped it/);
