#!/usr/bin/env node
// taskq work --persistent -- examples/handlers/handler.js
// One JSON object per line in, one answer per line out; everything for people goes to stderr.
const lines = require("readline").createInterface({ input: process.stdin, crlfDelay: Infinity });

lines.on("line", (line) => {
  const task = JSON.parse(line);
  const body = task.body ?? Buffer.from(task.body_base64, "base64").toString("latin1");
  console.error("working on", body);
  if (body.startsWith("later") && task.attempt === 1) console.log("RETRY not yet");
  else console.log(body.startsWith("never") ? "DEAD makes no sense" : "OK");
});
