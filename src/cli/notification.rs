//! `postern notification`.

use clap::Subcommand;

use super::client::{Fault, encoded};
use super::output::{Table, when};
use super::{Session, rows};
use crate::web::{NotificationJson, NotificationMailJson, NotificationsReadJson, ReadNotificationsJson};

/// What can be typed after it.
#[derive(Debug, Subcommand)]
pub enum Notification {
    /// List notifications that you have not read, newest first
    List {
        /// To this tenant; without it those about the instance
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Those that you have read too
        #[arg(long)]
        all: bool,
    },
    /// Mark notifications as read; without ids, all of them
    Read {
        /// To this tenant; without it those about the instance
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// Only these
        #[arg(value_name = "ID")]
        ids: Vec<String>,
    },
    /// Show which are mailed to a person, or change that
    Mail {
        /// The id of the person, as postern user list shows it
        user: String,
        /// Mail them: at most one mail in ten minutes
        #[arg(long, conflicts_with = "off")]
        on: bool,
        /// Mail only this kind; may be repeated, and switches mail on
        #[arg(long, value_name = "KIND", conflicts_with = "off")]
        kind: Vec<String>,
        /// Mail none
        #[arg(long)]
        off: bool,
    },
}

/// Carries out one of them.
pub async fn run(session: &Session, command: &Notification) -> Result<(), Fault> {
    match command {
        Notification::List { tenant, all } => {
            let tenant = tenant.as_ref().map(|name| format!("&tenant={}", encoded(name))).unwrap_or_default();
            let list = session.client.list(&format!("/notifications?unread={}{tenant}", !all), usize::MAX).await?;
            session.show(&list, table)
        }
        Notification::Read { tenant, ids } => {
            let asked = ReadNotificationsJson { tenant: tenant.clone(), all: ids.is_empty(), ids: ids.clone() };
            let done = session.client.post("/notifications/read", &asked).await?;
            session.show(&done, |_, done: NotificationsReadJson| format!("{} marked as read\n", done.marked))
        }
        Notification::Mail { user, on, kind, off } => {
            let path = format!("/users/{}/notification-mail", encoded(user));
            let is_change = *on || *off || !kind.is_empty();
            let asked = NotificationMailJson { mail: !off, kinds: kind.clone() };
            let shown =
                if is_change { session.client.put(&path, &asked).await? } else { session.client.get(&path).await? };
            session.show(&shown, |_, mail: NotificationMailJson| match (mail.mail, mail.kinds.as_slice()) {
                (false, _) => "no notifications are mailed\n".to_owned(),
                (true, []) => "notifications of every kind are mailed\n".to_owned(),
                (true, kinds) => format!("notifications that are mailed: {}\n", kinds.join(", ")),
            })
        }
    }
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let notifications: Vec<NotificationJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["ID", "WHEN", "WHAT", "TEXT"]);
    for one in notifications {
        table.row([one.id, when(&one.at, session.now), one.kind, one.text]);
    }
    table.text(session.colour, "nothing new")
}
