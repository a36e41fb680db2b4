//! `postern user`.
//!
//! Easy to get wrong: a password on the command line is seen by every user of the machine, so it is
//! read from standard input.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::Value;
use zeroize::Zeroizing;

use super::arguments::{User, UserSet};
use super::client::{Fault, encoded};
use super::output::{Table, or_dash, print, read, when};
use super::{Session, rows};
use crate::web::{FactorPolicyJson, LinkJson, NewUserJson, RedeemJson, StayJson, UserChangeJson, UserJson};

/// A password longer than this is refused by the daemon anyway.
const PASSWORD_OCTETS_MAX: u64 = 4096;

/// Carries out one of them.
pub async fn run(session: &Session, command: &User) -> Result<(), Fault> {
    match command {
        User::Invite { tenant, email, role, name, account } => {
            let (tenant, email, role, name) = (tenant.clone(), email.clone(), role.clone(), name.clone());
            let smtp_accounts = if account.is_empty() { None } else { Some(matrix(account)?) };
            let new = NewUserJson { tenant, email, name, role, smtp_accounts };
            let made = session.client.post("/users", &new).await?;
            session.show(&made, link)
        }
        User::List { tenant } => {
            let list = session.client.list(&format!("/users?tenant={}", encoded(tenant)), usize::MAX).await?;
            session.show(&list, table)
        }
        User::Show { id } => show(session, id).await,
        User::Set(set) => {
            let user = session.client.patch(&path(&set.id), &changed(set)?).await?;
            session.show(&user, facts)
        }
        User::Lock { id } => lock(session, id, true).await,
        User::Unlock { id } => lock(session, id, false).await,
        User::Reset { id } => {
            let made = session.client.post(&format!("{}/reset", path(id)), &Value::Null).await?;
            session.show(&made, link)
        }
        User::ResetFactor { id } => {
            let answer = session.client.delete(&format!("{}/second-factor", path(id))).await?;
            session.done(&answer, "his second factors are gone, and his sessions ended")
        }
        User::EndSessions { id } => {
            let answer = session.client.delete(&format!("{}/sessions", path(id))).await?;
            session.done(&answer, "his sessions ended")
        }
        User::EndSession { id, session: begun } => {
            let whole = called(session, id, begun).await?;
            let answer = session.client.delete(&format!("{}/sessions/{}", path(id), encoded(&whole))).await?;
            session.done(&answer, "the session ended")
        }
        User::Remove { id } => {
            let answer = session.client.delete(&path(id)).await?;
            session.done(&answer, "removed")
        }
        User::SetUpLink => {
            let made = session.client.post("/set-up-link", &Value::Null).await?;
            session.show(&made, link)
        }
        User::Redeem { token, email } => redeem(session, token, email.clone()).await,
        User::RequireFactor { tenant, role } => require_factor(session, tenant, role).await,
    }
}

/// `LOGIN=HOW` of each SMTP account somebody is bound to.
fn matrix(given: &[String]) -> Result<BTreeMap<String, String>, Fault> {
    let pair = |text: &String| {
        let (login, how) = text.split_once('=')?;
        (!login.is_empty() && ["read", "write"].contains(&how)).then(|| (login.to_owned(), how.to_owned()))
    };
    let read = |text| pair(text).ok_or_else(|| Fault::Failed(format!("{text:?} is not LOGIN=read or LOGIN=write")));
    given.iter().map(read).collect()
}

fn changed(set: &UserSet) -> Result<UserChangeJson, Fault> {
    let change = UserChangeJson {
        role: set.role.clone(),
        name: set.name.clone(),
        allowed_from: (set.from_anywhere || !set.from.is_empty()).then(|| set.from.clone()),
        smtp_accounts: if set.no_accounts || !set.account.is_empty() { Some(matrix(&set.account)?) } else { None },
        all_smtp_accounts: set.all_accounts.then_some(true),
        ..UserChangeJson::default()
    };
    if change == UserChangeJson::default() {
        return Err(Fault::Failed("nothing was given to change; see postern user set --help".to_owned()));
    }
    Ok(change)
}

/// The session of a person whose id begins so.
async fn called(session: &Session, id: &str, beginning: &str) -> Result<String, Fault> {
    let stays = session.client.get(&format!("{}/sessions", path(id))).await?;
    let stays: Vec<StayJson> = read(&stays)?;
    let mut found = stays.into_iter().filter(|stay| stay.id.starts_with(beginning));
    match (found.next(), found.next()) {
        (Some(stay), None) if !beginning.is_empty() => Ok(stay.id),
        (None, _) => Err(Fault::Failed(format!("there is no session {beginning}; see postern user show {id}"))),
        _ => Err(Fault::Failed(format!("several sessions begin with {beginning:?}; type more of it"))),
    }
}

async fn lock(session: &Session, id: &str, locked: bool) -> Result<(), Fault> {
    let change = UserChangeJson { locked: Some(locked), ..UserChangeJson::default() };
    let user = session.client.patch(&path(id), &change).await?;
    session.show(&user, |_, user: UserJson| format!("{} is {}\n", user.email, user.state))
}

async fn redeem(session: &Session, token: &str, email: Option<String>) -> Result<(), Fault> {
    let mut password = Zeroizing::new(String::new());
    let typed = std::io::stdin().take(PASSWORD_OCTETS_MAX).read_to_string(&mut password);
    typed.map_err(|error| Fault::Failed(format!("the password cannot be read from standard input: {error}")))?;
    let password = password.trim_end_matches(['\n', '\r']).to_owned();
    let user = session.client.post("/session/redeem", &RedeemJson { token: token.to_owned(), password, email }).await?;
    session.show(&user, |_, user: UserJson| format!("{} may log in now\n", user.email))
}

async fn require_factor(session: &Session, tenant: &str, roles: &[String]) -> Result<(), Fault> {
    let path = format!("/second-factor-policy?tenant={}", encoded(tenant));
    let policy = if roles.is_empty() {
        session.client.get(&path).await?
    } else {
        let required_of = roles.iter().filter(|role| *role != "none").cloned().collect();
        session.client.put(&path, &FactorPolicyJson { required_of }).await?
    };
    session.show(&policy, |_, policy: FactorPolicyJson| {
        let roles = policy.required_of.join(", ");
        format!("roles that must have a second factor: {}\n", if roles.is_empty() { "none" } else { roles.as_str() })
    })
}

async fn show(session: &Session, id: &str) -> Result<(), Fault> {
    let user = session.client.get(&path(id)).await?;
    session.show(&user, facts)?;
    if session.is_json() {
        return Ok(());
    }
    let stays = session.client.get(&format!("{}/sessions", path(id))).await?;
    let stays: Vec<StayJson> = read(&stays)?;
    let mut table = Table::new(&["SESSION", "BEGAN", "USED", "FROM", "AGENT"]);
    for stay in stays {
        let short = stay.id.chars().take(8).collect();
        table.row([short, when(&stay.began, session.now), when(&stay.used, session.now), stay.from, stay.agent]);
    }
    print(&table.text(session.colour, "no sessions"));
    Ok(())
}

fn path(id: &str) -> String {
    format!("/users/{}", encoded(id))
}

fn link(_: &Session, link: LinkJson) -> String {
    let whom = link.user.map_or_else(|| "the instance's first admin".to_owned(), |user| user.email);
    format!(
        "One-time link for {whom}, good until {until}; it is shown this once:\n  token {token}\n\
         To follow it: postern user redeem {token}    (reads the password from standard input)\n          \
         or: POST /api/v1/session/redeem with token and password\n",
        until = link.expires,
        token = link.token
    )
}

fn facts(session: &Session, user: UserJson) -> String {
    let accounts = user.smtp_accounts.map_or_else(
        || "as the role says".to_owned(),
        |own| own.iter().map(|(login, action)| format!("{login} ({action})")).collect::<Vec<_>>().join(", "),
    );
    let factors = factors(user.second_factor, user.passkeys, user.recovery_codes);
    let networks = if user.allowed_from.is_empty() { "anywhere".to_owned() } else { user.allowed_from.join(", ") };
    format!(
        "Id             {}\nTenant         {}\nAddress        {}\nName           {}\nRole           {}\nState          {}\n\
         Second factor  {factors}\nFrom           {networks}\nSMTP accounts  {accounts}\nLast login     {}\n",
        user.id,
        user.tenant,
        user.email,
        user.name,
        user.role,
        user.state,
        user.last_login.map_or_else(|| "never".to_owned(), |at| when(&at, session.now)),
    )
}

fn factors(has_one: bool, passkeys: usize, recovery_codes: usize) -> String {
    let passkeys = match passkeys {
        0 => String::new(),
        1 => ", 1 passkey".to_owned(),
        more => format!(", {more} passkeys"),
    };
    if has_one { format!("yes{passkeys}, {recovery_codes} recovery codes left") } else { "no".to_owned() }
}

fn table(session: &Session, list: Value) -> String {
    let users: Vec<UserJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["ID", "ADDRESS", "ROLE", "STATE", "2FA", "LAST LOGIN"]);
    for user in users {
        let factor = if user.second_factor { "yes" } else { "no" };
        let last = user.last_login.map(|at| when(&at, session.now));
        table.row([user.id, user.email, user.role, user.state, factor.to_owned(), or_dash(last)]);
    }
    table.text(session.colour, "nobody yet; postern user invite")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_read_and_nothing_else_is_taken_for_one() {
        let given = |texts: &[&str]| matrix(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        let read = given(&["shop-1=read", "shop-2=write"]).unwrap();
        assert_eq!(read, BTreeMap::from([("shop-1", "read"), ("shop-2", "write")].map(|(a, b)| (a.into(), b.into()))));
        for wrong in ["shop-1", "=read", "shop-1=all", "shop-1="] {
            assert!(given(&[wrong]).is_err(), "{wrong}");
        }
    }
}
