// node-postgres, which binds its logins to the certificate if told to; its cancel request is never encrypted.
const fs = require("node:fs");
const { Client, Query } = require("pg");

async function session(port, ssl) {
  const where = { host: process.env.PGHOST, port, database: "postgres" };
  const client = new Client({ ...where, ssl, enableChannelBinding: true });
  let mechanism = "none";
  client.connection.once("authenticationSASLContinue", () => (mechanism = client.saslSession.mechanism));
  await client.connect();
  if (mechanism !== "SCRAM-SHA-256-PLUS") throw new Error(`the login is not bound to the certificate: ${mechanism}`);
  const encrypted = await client.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
  const sleep = new Query("SELECT pg_sleep(60)");
  const ended = new Promise((resolve) => {
    sleep.on("end", () => resolve("slept"));
    sleep.on("error", (error) => resolve(error.code === "57014" ? "cancelled" : error.code));
  });
  client.query(sleep);
  await new Promise((resolve) => setTimeout(resolve, 300));
  new Client(where).cancel(client, sleep);
  const how = await ended;
  await client.end();
  return `${encrypted.rows[0].ssl ? "encrypted" : "plain"}, ${how}`;
}

async function main(authority, ...ports) {
  const modes = { require: { rejectUnauthorized: false }, "verify-full": { ca: fs.readFileSync(authority) } };
  for (const port of ports) {
    for (const [mode, ssl] of Object.entries(modes)) {
      console.log(`${mode}: ${await session(Number(port), ssl)}`);
    }
  }
}

main(...process.argv.slice(2));
