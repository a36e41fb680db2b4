//! `postern smtp-account`. A new password is printed once, with settings for common programs.

use super::arguments::{Ceiling, MailClass, Program, SmtpAccount, SmtpAccountAdd, SmtpAccountSet};
use super::client::{Fault, encoded};
use super::output::{Table, limits, read, when};
use super::snippets::{self, Access};
use super::{Session, rows};
use crate::mail::Class;
use crate::web::{
    LimitsJson, LoginSeenJson, NewPasswordJson, NewPauseJson, NewSmtpAccountJson, PauseJson, SmtpAccountChangeJson,
    SmtpAccountJson,
};

/// Carries out one of them.
pub async fn run(session: &Session, command: &SmtpAccount) -> Result<(), Fault> {
    let change = |change: SmtpAccountChangeJson| change;
    match command {
        SmtpAccount::Add(add) => {
            let made = session.client.post("/smtp-accounts", &new_account(add)).await?;
            session.show(&made, |_, made: NewPasswordJson| with_password(&made, add.program))
        }
        SmtpAccount::List { tenant } => {
            let filter = tenant.as_ref().map(|name| format!("?tenant={}", encoded(name))).unwrap_or_default();
            let list = session.client.list(&format!("/smtp-accounts{filter}"), usize::MAX).await?;
            session.show(&list, table)
        }
        SmtpAccount::Disable { login } => {
            let change = change(SmtpAccountChangeJson { disabled: Some(true), ..Default::default() });
            apply(session, login, &change, "disabled: its logins look like a wrong password").await
        }
        SmtpAccount::Enable { login } => {
            let change = change(SmtpAccountChangeJson { disabled: Some(false), ..Default::default() });
            apply(session, login, &change, "enabled").await
        }
        SmtpAccount::Set(set) => change_it(session, set).await,
        SmtpAccount::Logins { login } => {
            let list = session.client.get(&format!("{}/logins", path(login))).await?;
            session.show(&list, logins)
        }
        SmtpAccount::Rotate { login, finish: false, overlap } => rotate(session, login, *overlap).await,
        SmtpAccount::Rotate { login, finish: true, .. } => {
            let account = session.client.post(&format!("{}/finish-rotation", path(login)), &()).await?;
            session.show(&account, |_, account: SmtpAccountJson| {
                format!("the old password of {} is no longer valid\n", account.login)
            })
        }
        SmtpAccount::AllowFrom { login, networks } => {
            let said =
                if networks.is_empty() { "may log in from anywhere" } else { "may log in from these networks only" };
            let change = change(SmtpAccountChangeJson { allowed_from: Some(networks.clone()), ..Default::default() });
            apply(session, login, &change, said).await
        }
        SmtpAccount::Limits { login, hourly, daily } => keep_to(session, login, *hourly, *daily).await,
        SmtpAccount::Pause { login, reason } => {
            let asked = NewPauseJson { reason: reason.clone() };
            let paused = session.client.post(&format!("{}/pause", path(login)), &asked).await?;
            session.show(&paused, |_, paused: PauseJson| {
                format!(
                    "SMTP account {} is paused: its mail is answered 451, and what is queued is held\n",
                    paused.login
                )
            })
        }
        SmtpAccount::Release { login } => {
            let released = session.client.post(&format!("{}/release", path(login)), &()).await?;
            session.show(&released, |_, released: PauseJson| {
                format!("SMTP account {} is released: its mail is taken, and what was held goes on\n", released.login)
            })
        }
        SmtpAccount::Remove { login } => {
            let answer = session.client.delete(&path(login)).await?;
            session.done(&answer, &format!("SMTP account {login} removed"))
        }
    }
}

/// Sets the limits that were given and shows those in force.
async fn keep_to(session: &Session, login: &str, hourly: Option<Ceiling>, daily: Option<Ceiling>) -> Result<(), Fault> {
    let mut account = session.client.get(&path(login)).await?;
    if hourly.is_some() || daily.is_some() {
        let before: SmtpAccountJson = read(&account)?;
        let new = LimitsJson {
            hourly: hourly.map_or(before.limits.hourly, |ceiling| ceiling.0),
            daily: daily.map_or(before.limits.daily, |ceiling| ceiling.0),
        };
        let change = SmtpAccountChangeJson { limits: Some(new), ..Default::default() };
        account = session.client.patch(&path(login), &change).await?;
    }
    session.show(&account, |_, account: SmtpAccountJson| format!("{}\n", limits(&account.limits, &account.used)))
}

async fn apply(session: &Session, login: &str, change: &SmtpAccountChangeJson, said: &str) -> Result<(), Fault> {
    let account = session.client.patch(&path(login), change).await?;
    session.show(&account, |_, account: SmtpAccountJson| format!("SMTP account {} {said}\n", account.login))
}

/// Makes a new password beside the old one.
async fn rotate(session: &Session, login: &str, overlap: Option<u32>) -> Result<(), Fault> {
    let overlap = overlap.map(|hours| format!("?old_valid_hours={hours}")).unwrap_or_default();
    let made = session.client.post(&format!("{}/rotate{overlap}", path(login)), &()).await?;
    session.show(&made, |session, made: NewPasswordJson| {
        let until = made.account.old_password_until.as_ref();
        let until = until.map_or_else(|| "the next rotation".to_owned(), |until| when(until, session.now));
        let kept = format!(
            "The old password works until {until}, or until: postern smtp-account rotate {} --finish\n",
            made.account.login
        );
        with_password(&made, None) + &kept
    })
}

/// Changes what was given and shows the account.
async fn change_it(session: &Session, set: &SmtpAccountSet) -> Result<(), Fault> {
    let some = |given: &[String], none: bool| (none || !given.is_empty()).then(|| given.to_vec());
    let change = SmtpAccountChangeJson {
        name: set.name.clone(),
        allowed_senders: some(&set.allow_sender, set.any_sender),
        expires: set.expires.clone(),
        header_dialects: some(&set.headers, set.own_headers),
        ..Default::default()
    };
    let account = if change == SmtpAccountChangeJson::default() {
        session.client.get(&path(&set.login)).await?
    } else {
        session.client.patch(&path(&set.login), &change).await?
    };
    session.show(&account, |session, account: SmtpAccountJson| {
        let or = |list: &[String], none: &str| if list.is_empty() { none.to_owned() } else { list.join(" ") };
        let ends = account.expires.as_ref().map_or_else(|| "never".to_owned(), |at| when(at, session.now));
        format!(
            "login:    {}\nname:     {}\nsends as: {}\nexpires:  {ends}\nheaders:  {}\n",
            account.login,
            account.name,
            or(&account.allowed_senders, "every domain of its tenant"),
            or(&account.header_dialects, "ours only"),
        )
    })
}

fn logins(session: &Session, list: serde_json::Value) -> String {
    let seen: Vec<LoginSeenJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["WHEN", "FROM", "ON", "TLS", "RESULT"]);
    for login in seen {
        let result = login.reason.map_or_else(|| "let in".to_owned(), |reason| format!("refused: {reason}"));
        table.row([when(&login.at, session.now), login.peer, login.virtual_ip, login.tls, result]);
    }
    table.text(session.colour, "nobody has logged in with it yet")
}

fn path(login: &str) -> String {
    format!("/smtp-accounts/{}", encoded(login))
}

fn new_account(add: &SmtpAccountAdd) -> NewSmtpAccountJson {
    let class = match add.class {
        MailClass::Transactional => Class::Transactional,
        MailClass::Marketing => Class::Marketing,
    };
    NewSmtpAccountJson {
        tenant: add.tenant.clone(),
        class,
        allowed_from: add.allow_from.clone(),
        ..NewSmtpAccountJson::default()
    }
}

fn with_password(made: &NewPasswordJson, program: Option<Program>) -> String {
    let mut text = format!(
        "Login:    {}\nPassword: {}\nThe password is shown this once; it is not stored.\n",
        made.account.login, made.password
    );
    let Some(server) = made.servers.first() else {
        text.push_str(&format!(
            "\nTenant {0} has no virtual IP to log in on yet; add one with: postern vip add ADDRESS --ehlo NAME --tenant {0}\n",
            made.account.tenant
        ));
        return text;
    };
    let ports = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    text.push_str(&format!(
        "Server:   {}, port {} (TLS) or {} (STARTTLS)\n",
        server.host,
        ports(&server.tls_ports),
        ports(&server.starttls_ports)
    ));
    let access = Access {
        host: server.host.clone(),
        tls_port: server.tls_ports.first().copied(),
        starttls_port: server.starttls_ports.first().copied(),
        login: made.account.login.clone(),
        password: made.password.clone(),
    };
    for one in snippets::ALL.into_iter().filter(|one| program.is_none_or(|program| program == *one)) {
        text.push('\n');
        text.push_str(&snippets::snippet(one, &access));
    }
    text
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let accounts: Vec<SmtpAccountJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["LOGIN", "TENANT", "CLASS", "STATE", "FROM", "USED TODAY", "ADDED"]);
    for account in accounts {
        let state = match (account.disabled, &account.paused, account.passwords) {
            (true, ..) => "disabled",
            (false, Some(_), _) => "paused",
            (false, None, 2..) => "enabled, two passwords",
            (false, None, _) => "enabled",
        };
        let from: Vec<String> = account.allowed_from.iter().map(|network| network.to_string()).collect();
        table.row([
            account.login,
            account.tenant,
            format!("{:?}", account.class).to_lowercase(),
            state.to_owned(),
            if from.is_empty() { "anywhere".to_owned() } else { from.join(" ") },
            account.used.daily.unwrap_or_default().to_string(),
            when(&account.created, session.now),
        ]);
    }
    table.text(session.colour, "no SMTP accounts yet; make one with: postern smtp-account add TENANT")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::ServerJson;

    #[test]
    fn a_new_password_is_shown_with_the_settings_of_the_chosen_program() {
        let made = NewPasswordJson {
            account: SmtpAccountJson {
                id: "x".into(),
                tenant: "shop".into(),
                login: "shop-7k3m9q".into(),
                class: Class::Transactional,
                allowed_from: Vec::new(),
                limits: Default::default(),
                used: Default::default(),
                disabled: false,
                paused: None,
                passwords: 1,
                created: String::new(),
                name: String::new(),
                allowed_senders: Vec::new(),
                expires: None,
                old_password_until: None,
                header_dialects: Vec::new(),
            },
            password: "secret".into(),
            servers: vec![ServerJson {
                host: "shop.example.com".into(),
                addresses: Vec::new(),
                tls_ports: vec![465],
                starttls_ports: vec![587, 2525],
                present: true,
            }],
        };
        let text = with_password(&made, Some(Program::Symfony));
        assert!(text.contains("Password: secret") && text.contains("port 465 (TLS) or 587, 2525 (STARTTLS)"), "{text}");
        assert!(text.contains("MAILER_DSN=smtps://shop-7k3m9q:secret@shop.example.com:465"), "{text}");
        assert!(!text.contains("Thunderbird"), "{text}");
        let without = NewPasswordJson { servers: Vec::new(), ..made };
        assert!(with_password(&without, None).contains("postern vip add"), "a tenant without virtual IP is told");
    }
}
