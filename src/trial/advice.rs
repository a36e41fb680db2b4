//! What a person can do with the running trial: the login, and commands ready to paste.

use super::stage::{INBOX_DOMAIN, SENDER_DOMAIN, Stage, VIP_NAME};

/// Prints how to send more.
pub(super) fn print(stage: &Stage) {
    let (host, port, starttls) = (stage.door.ip(), stage.door.port(), stage.starttls_door.port());
    let (user, password) = (&stage.user, stage.password.as_str());
    let from = format!("orders@{SENDER_DOMAIN}");
    let to = format!("anna@{INBOX_DOMAIN}");
    super::say(format_args!(
        "
The service stays up. Send more; every step of it will be shown here. End with Ctrl-C.

  login     {user}
  password  {password}
  server    {host}, port {port} (TLS) or {starttls} (STARTTLS)
  from      anything@{SENDER_DOMAIN}    to  anything@{INBOX_DOMAIN}

swaks:
  swaks --server {host} --port {port} --tls-on-connect --auth-user {user} --auth-password {password} \\
        --from {from} --to {to}

msmtp:
  printf 'From: {from}\\nTo: {to}\\nSubject: hello\\n\\nhello\\n' | \\
  msmtp --host={host} --port={port} --tls=on --tls-starttls=off --tls-certcheck=off --auth=plain \\
        --user={user} --passwordeval='echo {password}' --from={from} {to}

Thunderbird: add an outgoing server (Account Settings, Outgoing Server): server name {host}, port {port},
  connection security SSL/TLS, authentication \"Normal password\", user name {user};
  accept the self-signed certificate of {VIP_NAME} when asked.
"
    ));
}
