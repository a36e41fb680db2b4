// Verifies requests of webhooks with the Standard Webhooks library for Node.
//
// Reads JSON lines from standard input: {"secret", "headers", "body", "good"}; prints one line for each that is
// not judged as `good` says, then how many were judged.
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

let text = "";
process.stdin.on("data", (piece) => { text += piece; });
process.stdin.on("end", () => {
  const cases = text.split("\n").filter((line) => line !== "").map((line) => JSON.parse(line));
  for (const one of cases) {
    let good = true;
    try {
      new Webhook(one.secret).verify(one.body, one.headers);
    } catch (error) {
      if (!(error instanceof WebhookVerificationError)) throw error;
      good = false;
    }
    if (good !== one.good) console.log("wrong:", JSON.stringify(one));
  }
  console.log("judged:", cases.length);
});
