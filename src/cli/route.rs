//! `postern route`. A relay's password comes from a file or standard input, never from the command
//! line, where every user of the machine could read it.

use std::io::Read;

use zeroize::Zeroizing;

use super::arguments::{Route, RouteAdd, RouteSet, RouteTls};
use super::client::{Fault, encoded};
use super::output::{Table, or_dash};
use super::{Session, rows};
use crate::web::{NewRouteJson, RouteChangeJson, RouteJson};

/// Octets of a password file, at most.
const PASSWORD_BYTES_MAX: u64 = 4096;

/// Carries out one of them.
pub async fn run(session: &Session, command: &Route) -> Result<(), Fault> {
    match command {
        Route::Add(add) => {
            let made = session.client.post("/routes", &new_route(add)?).await?;
            session.show(&made, |_, route: RouteJson| {
                format!("{} goes by {}:{} from now on (route {})\n", scope(&route), route.host, route.port, route.id)
            })
        }
        Route::List => {
            let list = session.client.list("/routes", usize::MAX).await?;
            session.show(&list, table)
        }
        Route::Set(set) => {
            let path = format!("/routes/{}", encoded(&set.id));
            let changed = session.client.patch(&path, &change(set)?).await?;
            session.show(&changed, |_, route: RouteJson| {
                let queued = "mail queued for it goes that way at its next attempt (postern queue retry ID)";
                format!("{} goes by {}:{} now; {queued}\n", scope(&route), route.host, route.port)
            })
        }
        Route::Remove { id } => {
            let answer = session.client.delete(&format!("/routes/{}", encoded(id))).await?;
            session.done(&answer, &format!("route {id} removed"))
        }
    }
}

fn new_route(add: &RouteAdd) -> Result<NewRouteJson, Fault> {
    let password = add.password_file.as_ref().map(|path| read_password(path)).transpose()?;
    let tls = tls(add.tls)?;
    Ok(NewRouteJson {
        all: add.all,
        tenant: add.tenant.clone(),
        to: add.to.clone(),
        on_demand: add.on_demand,
        host: add.host.clone(),
        port: add.port,
        tls,
        user: add.user.clone(),
        password: password.map(|password| password.to_string()),
    })
}

fn change(set: &RouteSet) -> Result<RouteChangeJson, Fault> {
    let password = set.password_file.as_ref().map(|path| read_password(path)).transpose()?;
    Ok(RouteChangeJson {
        host: set.host.clone(),
        port: set.port,
        tls: set.tls.map(tls).transpose()?,
        user: set.user.clone(),
        password: password.map(|password| password.to_string()),
        no_login: set.no_login,
    })
}

/// As the API spells it.
fn tls<T: serde::de::DeserializeOwned>(asked: RouteTls) -> Result<T, Fault> {
    let word = match asked {
        RouteTls::Implicit => "implicit",
        RouteTls::Starttls => "starttls",
        RouteTls::Opportunistic => "opportunistic",
        RouteTls::None => "none",
    };
    serde_json::from_value(word.into()).map_err(|error| Fault::Failed(error.to_string()))
}

pub(super) fn read_password(path: &std::path::Path) -> Result<Zeroizing<String>, Fault> {
    let mut text = Zeroizing::new(String::new());
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(PASSWORD_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(PASSWORD_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| Fault::Failed(format!("the password cannot be read from {}: {error}", path.display())))?;
    let password = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
    if password.is_empty() {
        return Err(Fault::Failed(format!("{} holds no password", path.display())));
    }
    Ok(password)
}

fn scope(route: &RouteJson) -> String {
    if route.on_demand {
        return "mail that a destination rule sends here".to_owned();
    }
    match (&route.tenant, &route.to) {
        (Some(tenant), _) => format!("mail of tenant {tenant}"),
        (None, Some(domain)) => format!("mail to {domain}"),
        (None, None) => "all mail".to_owned(),
    }
}

fn table(session: &Session, list: serde_json::Value) -> String {
    let routes: Vec<RouteJson> = rows(&list).unwrap_or_default();
    let mut table = Table::new(&["ID", "WHICH MAIL", "RELAY", "TLS", "USER"]);
    for route in routes {
        let tls = serde_json::to_value(route.tls).unwrap_or_default();
        table.row([
            route.id.clone(),
            scope(&route),
            format!("{}:{}", route.host, route.port),
            tls.as_str().unwrap_or("-").to_owned(),
            or_dash(route.user),
        ]);
    }
    table.text(session.colour, "no routes: all mail goes straight to its recipients' servers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_may_end_in_a_newline_and_must_hold_something() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "se cret\r\n").unwrap();
        assert_eq!(read_password(&path).unwrap().as_str(), "se cret");
        std::fs::write(&path, "\n").unwrap();
        assert!(read_password(&path).unwrap_err().to_string().contains("holds no password"));
        assert!(read_password(&folder.path().join("none")).is_err());
    }
}
