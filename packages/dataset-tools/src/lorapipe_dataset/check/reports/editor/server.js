// What goes to the server and back. One request at a time, so that each edit names the versions that the last one left.
const POLL = 1000; // milliseconds
const PATIENCE = 15000;
let revision = edit.revision ?? 0;
let undoable = edit.undo ?? null;
let redoable = edit.redo ?? null;
let connected = true;
let waiting = 0;
let queue = Promise.resolve();

class Lost extends Error {}

async function ask(path, body, patience) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  if (patience) options.signal = AbortSignal.timeout(patience);
  let reply, answer;
  try {
    reply = await fetch(path, { ...options, cache: "no-store" });
    answer = await reply.json();
  } catch (problem) {
    // An answer that is no JSON comes from something else that took the port.
    throw new Lost(String(problem));
  }
  if (!reply.ok) throw new Error(answer.error ?? `the server answered ${reply.status}`);
  return answer;
}

function queued(work) {
  const done = queue.then(work);
  queue = done.catch(() => {});
  return done;
}

// Sends an edit, made when its turn comes; true when it is on the disk. `told` is what is said then.
function send(path, makeBody, told) {
  waiting++;
  renderState();
  return queued(async () => {
    try {
      const body = makeBody();
      if (body === null) return false;
      const answer = await ask(path, body);
      setConnected(true);
      return await take(answer, told);
    } catch (problem) {
      if (!(problem instanceof Lost)) tell(`Not saved: ${problem.message}.`, { grave: true });
      else {
        setConnected(false);
        tell("Not saved: no connection to lora-check.", { grave: true });
      }
      return false;
    } finally {
      waiting--;
      renderState();
    }
  });
}

// Of five hundred pictures, what is learned and what is drawn are two tasks: the page answers in between.
const pause = () => new Promise(done => setTimeout(done));

async function take(answer, told) {
  (answer.changed ?? []).forEach(learn);
  const conflicts = (answer.conflicts ?? []).map(one => { learn(one); return indexOf.get(one.id); });
  const errors = answer.errors ?? [];
  learnSteps(answer);
  learnRules(answer);
  await pause();
  refresh();
  const done = told?.(answer) ?? "";
  if (conflicts.length) {
    tell(`${done && `${done} `}${many(conflicts.length, "caption")} had changed elsewhere and ${conflicts.length === 1 ? "was" : "were"} left as found.`,
      { grave: true, pictures: conflicts });
  } else if (errors.length) {
    const first = data.pictures[indexOf.get(errors[0].id)];
    tell(`${done && `${done} `}Left alone: ${first ? `${nameOf(first)}: ` : ""}${errors[0].text}${errors.length > 1 ? ` (and ${errors.length - 1} more)` : ""}`,
      { grave: true, pictures: errors.map(one => indexOf.get(one.id)).filter(index => index !== undefined) });
  } else if (done) tell(done);
  return !conflicts.length && !errors.length;
}

function setConnected(now) {
  if (now === connected) return;
  connected = now;
  if (now) tell("Connected again.");
  else tell("No connection to lora-check. What is saved is on the disk; what you write is kept here.", { grave: true });
  renderState();
}

async function poll() {
  try {
    if (!document.hidden) await queued(look);
  } catch (problem) {
    if (problem instanceof Lost) setConnected(false);
  }
  setTimeout(poll, POLL);
}

// What others changed: an editor, a command, another tab. Our own edits come by here too and are no news.
async function look() {
  const answer = await ask(`api/changes?since=${revision}`, undefined, PATIENCE);
  setConnected(true);
  learnSteps(answer);
  if (answer.revision === revision) return;
  revision = answer.revision;
  const changed = (answer.changed ?? []).map(learn).filter(index => index !== null);
  const gone = (answer.gone ?? []).map(forget).filter(index => index !== null);
  const added = answer.added ? (await ask("api/state", undefined, PATIENCE)).pictures.filter(welcome).length : 0;
  learnRules(answer);
  // What the page knows already is not drawn again: that could take a button away from under the mouse.
  if (!changed.length && !gone.length && !added) return;
  refresh();
  const parts = [];
  if (changed.length) parts.push(`${many(changed.length, "caption")} changed elsewhere.`);
  if (gone.length) parts.push(`${many(gone.length, "picture")} went away.`);
  if (added) parts.push(`${many(added, "picture")} came.`);
  if (parts.length) tell(parts.join(" "), { pictures: changed });
}

// What Undo and Redo would do; another tab's edits are among them.
function learnSteps(answer) {
  const before = JSON.stringify([undoable, redoable]);
  undoable = answer.undo ?? null;
  redoable = answer.redo ?? null;
  if (JSON.stringify([undoable, redoable]) !== before) renderState();
}

// Edits -------------------------------------------------------------------------------------------

const saidOf = (words, number) => `${words}: ${many(number, "caption")} saved.`;

function apply(action, more, words, indexes) {
  const which = indexes ?? [...selected];
  if (!which.length) return Promise.resolve(false);
  flushOrder();
  return send("api/edit", () => ({ action, ...selection(which), ...more }),
    answer => answer.changed?.length ? saidOf(words, answer.changed.length) : answer.conflicts?.length ? "" : `${words}: nothing to change.`);
}

const addTags = (tags, where, indexes) => apply("add", { tags, where }, `Add ${tags.join(", ")}`, indexes);
const removeTag = (tag, indexes) => apply("remove", { tags: [tag] }, `Remove ${tag}`, indexes);
const renameTag = (from, to, indexes) => apply("rename", { from, to }, `Rename ${from} to ${to}`, indexes);
const moveTag = (tag, where, indexes) => apply("move", { tag, where }, `${tag} to the ${where}`, indexes);
const leaveOut = (out, indexes = [...selected]) => send("api/edit", () => ({ action: "out", ...selection(indexes), out }),
  answer => `${many(answer.changed?.length ?? 0, "picture")} ${out ? "left out" : "taken in again"}.`);

async function undo() {
  await settle();
  if (undoable) await send("api/undo", () => ({}), answer => `Taken back: ${many(answer.changed?.length ?? 0, "picture")}.`);
}

async function redo() {
  await settle();
  if (redoable) await send("api/redo", () => ({}), answer => `Done again: ${many(answer.changed?.length ?? 0, "picture")}.`);
}
