// Nodemailer; see README.md for the arguments. NODE_PATH says where the package is.
const fs = require('fs');
const nodemailer = require('nodemailer');

const [host, port, way, cafile, login, password, from, to, subject, text, attachment] = process.argv.slice(2);
const transport = nodemailer.createTransport({
  host,
  port: Number(port),
  secure: way === 'tls',
  requireTLS: way !== 'tls',
  tls: { ca: fs.readFileSync(cafile) },
  auth: { user: login, pass: password },
});
const attachments = attachment ? [{ path: attachment }] : [];
transport
  .sendMail({ from, to, subject, text: fs.readFileSync(text, 'utf8'), attachments })
  .then((sent) => {
    if (sent.rejected.length > 0) throw new Error(`rejected: ${sent.rejected}`);
  })
  .catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
