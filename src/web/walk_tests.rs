//! Every operation of the OpenAPI document, walked by everybody: with real things of another tenant, which must
//! look like what does not exist; and by each role in its own tenant, held against the table of permissions.
//!
//! [`ASKED`] says of each operation what it needs and how it is asked well, so that no answer is hidden behind a body
//! that could not be read. One that is not in the table fails the tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::door_tests::{Answer, Sent, ask, log_in, person};
use super::tests::{call, parts_over};
use super::{Parts, Settings, router};
use crate::access::{Action, Actor, Narrowing, Permission, RESOURCES, Resource, Role, Scope};
use crate::background::Shutdown;
use crate::mail::{Address, Domain, TenantId};
use crate::notifications::{Person, Post};
use crate::store::MemoryStore;

/// What an operation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// This of the tenant whose thing is named.
    Of(Resource, Action),
    /// This of a tenant, and nothing that narrows it: the export of everything.
    Everything,
    /// Reading or changing what is the instance's.
    Instance(Action),
    /// Nothing: everybody gets his own part.
    Nothing,
    /// A session of one's own, or nothing; there is nobody else's thing to name. See `door_tests`.
    Session,
    /// The local socket.
    Local,
}

use Need::{Everything, Instance, Local, Nothing, Of, Session};
use Resource::{
    Audit, Domains, Keys, Messages, Queue, SmtpAccounts, Statistics, Suppressions, Tenant, Users, Webhooks,
};

const READ: Action = Action::Read;
const WRITE: Action = Action::Write;

/// An operation, what it needs, a query, a body (names in braces), and what whoever may do it is answered where
/// that is not a success: as things are in these tests.
type Asked = (&'static str, Need, &'static str, &'static str, Option<u16>);

const ASKED: &[Asked] = &[
    ("audit_list", Of(Audit, READ), "tenant={tenant}", "", None),
    ("audit_verify", Of(Audit, READ), "tenant={tenant}", "", None),
    // There is no key to write it with.
    ("backup_take", Instance(WRITE), "", "", Some(409)),
    ("breaker_list", Nothing, "", "", None),
    ("breaker_limits", Instance(READ), "", "", None),
    ("breaker_set_limits", Instance(WRITE), "", r#"{"tenant": "{tenant}", "limits": {"volume_min": 50}}"#, None),
    ("breaker_clear_limits", Instance(WRITE), "", r#"{"tenant": "{tenant}"}"#, None),
    ("destination_rules_list", Instance(READ), "", "", None),
    ("destination_rules_add", Instance(WRITE), "", r#"{"to": "parked.example", "reason": "nobody there"}"#, None),
    ("destination_rules_remove", Instance(WRITE), "", "", None),
    ("keys_list", Of(Keys, READ), "tenant={tenant}", "", None),
    ("keys_add", Of(Keys, WRITE), "", r#"{"tenant": "{tenant}", "scopes": ["queue:read"]}"#, None),
    ("keys_remove", Of(Keys, WRITE), "", "", None),
    ("keys_show", Of(Keys, READ), "", "", None),
    ("keys_change", Of(Keys, WRITE), "", r#"{"name": "other"}"#, None),
    ("keys_rotate", Of(Keys, WRITE), "", r#"{"overlap_hours": 1}"#, None),
    ("mailbox_list", Instance(READ), "", "", None),
    // Nobody wrote to postmaster.
    ("mailbox_remove", Instance(WRITE), "", "", Some(404)),
    ("mailbox_show", Instance(READ), "", "", Some(404)),
    ("messages_search", Of(Messages, READ), "tenant={tenant}", "", None),
    (
        "messages_send",
        Of(Messages, WRITE),
        "",
        r#"{"tenant": "{tenant}", "smtp_account": "{login}", "from": "a@{domain}", "to": ["b@example.org"],
            "subject": "s", "text": "t"}"#,
        None,
    ),
    (
        "messages_send_batch",
        Of(Messages, WRITE),
        "",
        r#"{"messages": [{"tenant": "{tenant}", "smtp_account": "{login}", "from": "a@{domain}",
            "to": ["b@example.org"], "subject": "s", "text": "t"}]}"#,
        None,
    ),
    ("messages_show", Of(Messages, READ), "", "", None),
    ("notifications_list", Of(Tenant, READ), "tenant={tenant}", "", None),
    ("notifications_read", Of(Tenant, READ), "", r#"{"tenant": "{tenant}", "all": true}"#, None),
    ("operations_search", Of(Suppressions, READ), "tenant={tenant}", "", None),
    ("queue_list", Of(Queue, READ), "tenant={tenant}", "", None),
    ("queue_shape_show", Of(Queue, READ), "tenant={tenant}", "", None),
    ("queue_sweeps_list", Of(Queue, READ), "tenant={tenant}", "", None),
    (
        "queue_sweeps_add",
        Of(Queue, WRITE),
        "",
        r#"{"act": "hold", "filter": {"tenant": "{tenant}"}, "seconds": 60}"#,
        None,
    ),
    ("queue_sweeps_show", Of(Queue, READ), "", "", None),
    ("queue_sweeps_end", Of(Queue, WRITE), "", "", None),
    ("queue_totals_show", Of(Queue, READ), "tenant={tenant}", "", None),
    ("queue_show", Of(Queue, READ), "", "", None),
    ("queue_cancel", Of(Queue, WRITE), "", "{}", None),
    // It is still owed.
    ("queue_erase", Of(Queue, WRITE), "", "", Some(422)),
    ("queue_expire", Of(Queue, WRITE), "", "{}", None),
    ("queue_hold", Of(Queue, WRITE), "", "{}", None),
    ("queue_move_to", Of(Queue, WRITE), "", r#"{"to": "{second_vip}"}"#, None),
    ("queue_release", Of(Queue, WRITE), "", "{}", None),
    ("queue_retry", Of(Queue, WRITE), "", "{}", None),
    ("queue_why", Of(Queue, READ), "", "", None),
    ("routes_list", Instance(READ), "", "", None),
    (
        "routes_add",
        Instance(WRITE),
        "",
        r#"{"to": "own.example", "host": "relay.example", "port": 587, "tls": "starttls"}"#,
        None,
    ),
    ("routes_remove", Instance(WRITE), "", "", None),
    ("routes_change", Instance(WRITE), "", r#"{"port": 25}"#, None),
    ("search_show", Instance(READ), "", "", None),
    ("search_rebuild", Instance(WRITE), "", "", None),
    ("users_factor_policy", Of(Users, READ), "tenant={tenant}", "", None),
    ("users_set_factor_policy", Of(Users, WRITE), "tenant={tenant}", r#"{"required_of": []}"#, None),
    ("session_log_out", Session, "", "", Some(401)),
    ("session_show", Session, "", "", Some(401)),
    (
        "session_log_in",
        Session,
        "",
        r#"{"email": "nobody@example.org", "password": "wrong but long enough"}"#,
        Some(401),
    ),
    ("session_confirm", Session, "", r#"{"password": "wrong but long enough"}"#, Some(401)),
    ("session_new_codes", Session, "", "", Some(401)),
    ("session_passkeys", Session, "", "", Some(401)),
    ("session_offer_passkey", Session, "", "", Some(401)),
    ("session_add_passkey", Session, "", r#"{"name": "key", "credential": {}}"#, Some(401)),
    ("session_rename_passkey", Session, "", r#"{"name": "another"}"#, Some(401)),
    ("session_remove_passkey", Session, "", "", Some(401)),
    ("session_change_password", Session, "", r#"{"password": "another horse entirely"}"#, Some(401)),
    // The same answer whoever is meant.
    ("session_forgotten", Session, "", r#"{"email": "nobody@example.org"}"#, None),
    ("session_redeem", Session, "", r#"{"token": "none", "password": "correct horse battery"}"#, Some(404)),
    ("session_remove_factor", Session, "", "", Some(401)),
    ("session_offer_factor", Session, "", "", Some(401)),
    ("session_prove_factor", Session, "", r#"{"code": "123456"}"#, Some(401)),
    ("users_set_up", Local, "", "", None),
    ("site_limits_list", Instance(READ), "", "", None),
    ("site_limits_set", Instance(WRITE), "", r#"{"scope": {"site": "gmail"}, "connections": 5}"#, None),
    ("site_limits_clear", Instance(WRITE), "", r#"{"site": "gmail"}"#, None),
    ("sites_list", Instance(READ), "", "", None),
    ("sites_show", Instance(READ), "vip={vip}", "", None),
    ("sites_release", Instance(WRITE), "", r#"{"vip": "{vip}"}"#, None),
    ("sites_warm", Instance(WRITE), "", r#"{"vip": "{vip}"}"#, None),
    ("sites_warm_stop", Instance(WRITE), "", r#"{"vip": "{vip}"}"#, None),
    ("smtp_accounts_list", Of(SmtpAccounts, READ), "tenant={tenant}", "", None),
    ("smtp_accounts_add", Of(SmtpAccounts, WRITE), "", r#"{"tenant": "{tenant}"}"#, None),
    ("smtp_accounts_remove", Of(SmtpAccounts, WRITE), "", "", None),
    ("smtp_accounts_show", Of(SmtpAccounts, READ), "", "", None),
    ("smtp_accounts_change", Of(SmtpAccounts, WRITE), "", r#"{"name": "Web shop"}"#, None),
    ("breaker_show", Of(SmtpAccounts, READ), "", "", None),
    // Only one password is valid by then.
    ("smtp_accounts_finish_rotation", Of(SmtpAccounts, WRITE), "", "", Some(404)),
    ("smtp_accounts_logins", Of(SmtpAccounts, READ), "", "", None),
    ("breaker_pause", Instance(WRITE), "", r#"{"reason": "looks wrong"}"#, None),
    ("breaker_release", Instance(WRITE), "", "", None),
    ("smtp_accounts_rotate", Of(SmtpAccounts, WRITE), "", "", None),
    ("breaker_end_waiver", Instance(WRITE), "", "", None),
    ("breaker_waive", Instance(WRITE), "", r#"{"reason": "known"}"#, None),
    ("statistics_show", Of(Statistics, READ), "tenant={tenant}", "", None),
    ("statistics_csv", Of(Statistics, READ), "tenant={tenant}", "", None),
    ("status_show", Instance(READ), "", "", None),
    ("suspensions_list", Instance(READ), "", "", None),
    ("suspensions_add", Instance(WRITE), "", r#"{"tenant": "{tenant}", "reason": "a look"}"#, None),
    ("suspensions_resume", Instance(WRITE), "", r#"{"tenant": "{tenant}"}"#, None),
    ("tenants_list", Nothing, "", "", None),
    ("tenants_add", Instance(WRITE), "", r#"{"name": "third"}"#, None),
    // It has far too much.
    ("tenants_remove", Instance(WRITE), "", "", Some(422)),
    ("tenants_show", Of(Tenant, READ), "", "", None),
    ("tenants_change", Instance(WRITE), "", r#"{"region": "EU"}"#, None),
    ("tenants_delete_undo", Instance(WRITE), "", "", None),
    ("tenants_delete", Instance(WRITE), "", r#"{"grace_days": 3}"#, None),
    ("domains_list", Of(Domains, READ), "", "", None),
    ("domains_add", Of(Domains, WRITE), "", r#"{"domain": "new.{tenant}.example.com"}"#, None),
    ("domains_remove", Of(Domains, WRITE), "", "", None),
    ("domains_show", Of(Domains, READ), "", "", None),
    ("domains_change", Instance(WRITE), "", r#"{"covers_subdomains": true}"#, None),
    ("domains_readiness", Of(Domains, READ), "", "", None),
    ("domains_records", Of(Domains, READ), "", "", None),
    ("return_paths_remove", Of(Domains, WRITE), "", "", None),
    ("return_paths_show", Of(Domains, READ), "", "", None),
    ("return_paths_set", Of(Domains, WRITE), "", "{}", None),
    ("return_paths_verify", Of(Domains, WRITE), "", "", None),
    // What no record proves takes new keys at once: no rotation is under way.
    ("domains_cancel_rotation", Of(Domains, WRITE), "", "", Some(404)),
    ("domains_rotate", Of(Domains, WRITE), "", "", None),
    ("domains_verify", Of(Domains, WRITE), "", "", None),
    ("domains_zone", Of(Domains, READ), "", "", None),
    ("tenants_export", Everything, "", "", None),
    ("operations_list", Of(Suppressions, READ), "", "", None),
    ("operations_show", Of(Suppressions, READ), "", "", None),
    // It is finished.
    ("operations_cancel", Of(Suppressions, WRITE), "", "", Some(422)),
    // An export rejects nothing.
    ("operations_rejected", Of(Suppressions, READ), "", "", Some(404)),
    ("operations_result", Of(Suppressions, READ), "", "", None),
    ("suppressions_export", Of(Suppressions, READ), "", "", None),
    ("suppressions_import", Of(Suppressions, WRITE), "", "\"i@example.org\"", None),
    ("suppression_rules_show", Of(Suppressions, READ), "", "", None),
    ("suppression_rules_change", Of(Suppressions, WRITE), "", r#"{"hard_bounces": 2}"#, None),
    ("suppressions_list", Of(Suppressions, READ), "", "", None),
    ("suppressions_change", Of(Suppressions, WRITE), "", r#"{"add": [{"subject": "c@example.org"}]}"#, None),
    ("suppressions_add", Of(Suppressions, WRITE), "", r#"{"subject": "y@example.org"}"#, None),
    ("suppressions_remove", Of(Suppressions, WRITE), "", "", None),
    ("suppressions_show", Of(Suppressions, READ), "", "", None),
    ("webhooks_list", Of(Webhooks, READ), "", "", None),
    ("webhooks_add", Of(Webhooks, WRITE), "", r#"{"url": "https://hook.example.com/other"}"#, None),
    ("webhooks_remove", Of(Webhooks, WRITE), "", "", None),
    ("webhooks_show", Of(Webhooks, READ), "", "", None),
    ("webhooks_change", Of(Webhooks, WRITE), "", r#"{"name": "other"}"#, None),
    ("webhooks_attempts", Of(Webhooks, READ), "", "", None),
    // A test call tells of no event that could be told again.
    ("webhooks_replay_attempt", Of(Webhooks, WRITE), "", "", Some(422)),
    ("webhooks_replay", Of(Webhooks, WRITE), "", r#"{"from": "2026-01-01T00:00:00Z"}"#, None),
    ("webhooks_rotate", Of(Webhooks, WRITE), "", r#"{"overlap_hours": 1}"#, None),
    ("webhooks_test", Of(Webhooks, WRITE), "", "", None),
    ("tls_failing_list", Instance(READ), "", "", None),
    ("tls_policies_show", Instance(READ), "", "", None),
    ("tls_reports_list", Instance(READ), "", "", None),
    // Nothing was counted yet.
    ("tls_reports_show", Instance(READ), "", "", Some(404)),
    ("tls_rules_list", Instance(READ), "", "", None),
    ("tls_rules_set", Instance(WRITE), "", r#"{"domain": "{domain}", "tls": "verified"}"#, None),
    ("tls_rules_clear", Instance(WRITE), "", "", None),
    ("top_show", Instance(READ), "", "", None),
    ("traces_add", Of(Queue, READ), "", r#"{"tenant": "{tenant}"}"#, None),
    ("traces_leave", Of(Queue, READ), "", "", None),
    ("traces_read", Of(Queue, READ), "", "", None),
    ("users_list", Of(Users, READ), "tenant={tenant}", "", None),
    (
        "users_invite",
        Of(Users, WRITE),
        "",
        r#"{"tenant": "{tenant}", "email": "m@example.com", "role": "support"}"#,
        None,
    ),
    ("users_remove", Of(Users, WRITE), "", "", None),
    ("users_show", Of(Users, READ), "", "", None),
    ("users_change", Of(Users, WRITE), "", r#"{"name": "Eve"}"#, None),
    ("notifications_mail_show", Of(Users, READ), "", "", None),
    ("notifications_mail_set", Of(Users, WRITE), "", r#"{"mail": true}"#, None),
    ("users_reset", Of(Users, WRITE), "", "", None),
    // There is none.
    ("users_remove_factor", Of(Users, WRITE), "", "", Some(404)),
    ("users_end_sessions", Of(Users, WRITE), "", "", None),
    ("users_sessions", Of(Users, READ), "", "", None),
    ("users_end_session", Of(Users, WRITE), "", "", None),
    ("vips_list", Instance(READ), "", "", None),
    ("vips_add", Instance(WRITE), "", r#"{"ipv4": "192.0.2.200", "ehlo": "n.example.com", "shared": true}"#, None),
    // Mail is to leave by it.
    ("vips_remove", Instance(WRITE), "", "", Some(409)),
    ("vips_spf", Instance(READ), "", "", None),
    ("vips_show", Instance(READ), "", "", None),
    ("vips_change", Instance(WRITE), "", r#"{"ehlo": "mx.{tenant}.example.com"}"#, None),
];

/// An operation of the document.
struct Operation {
    method: String,
    path: String,
    asked: Asked,
}

/// Every operation of the document, those that remove things last, and each in the order of the document; or what is
/// wrong with the table.
fn operations_of(document: &Value) -> Result<Vec<Operation>, String> {
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, said) in methods.as_object().unwrap() {
            let name = said["operationId"].as_str().unwrap();
            let asked = ASKED.iter().find(|asked| asked.0 == name);
            let asked =
                *asked.ok_or_else(|| format!("{name} is not in ASKED: say what it needs and how it is asked"))?;
            if said["requestBody"].is_object() == asked.3.is_empty() {
                return Err(format!("{name}: a body, if and only if it has one"));
            }
            if path.starts_with("/session") != (asked.1 == Session) {
                return Err(format!("{name}: what is one's own session's is below /session, and nothing else"));
            }
            found.push(Operation { method: method.to_uppercase(), path: path.clone(), asked });
        }
    }
    let gone = |asked: &&Asked| found.iter().all(|operation| operation.asked.0 != asked.0);
    if let Some(gone) = ASKED.iter().find(gone) {
        return Err(format!("ASKED names {}, which is gone", gone.0));
    }
    // What is removed with something else goes before it.
    found.sort_by_key(|operation| {
        let depth = std::cmp::Reverse(operation.path.matches('/').count());
        (operation.method == "DELETE").then_some((operation.path == "/tenants/{tenant}", depth))
    });
    Ok(found)
}

fn operations() -> Vec<Operation> {
    operations_of(&super::document::document()).unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// Names of what belongs to one tenant, the tenant itself excepted. A site, a rule, a letter, a recipient are nobody's.
const OWNED: [&str; 12] =
    ["domain", "login", "key", "user", "session", "id", "webhook", "attempt", "operation", "sweep", "trace", "vip"];

/// What is to be put for a name in braces.
type Names = BTreeMap<&'static str, String>;

fn filled(text: &str, names: &Names) -> String {
    let mut filled = text.to_owned();
    for (name, value) in names {
        filled = filled.replace(&format!("{{{name}}}"), value);
    }
    filled
}

impl Operation {
    fn path(&self, names: &Names) -> String {
        let query = if self.asked.2.is_empty() { String::new() } else { format!("?{}", self.asked.2) };
        let path = filled(&format!("{}{query}", self.path), names);
        assert!(!path.contains('{'), "nothing is known to put into {path}");
        path
    }

    fn body(&self, names: &Names) -> Value {
        let text = filled(self.asked.3, names);
        if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")) }
    }

    fn is_of_a_message(&self) -> bool {
        self.path.contains("{id}")
    }

    /// Whether path, query or body hold this name.
    fn names(&self, name: &str) -> bool {
        let braced = format!("{{{name}}}");
        [&*self.path, self.asked.2, self.asked.3].iter().any(|text| text.contains(&braced))
    }

    /// Whether the request names something of the tenant.
    fn names_something(&self) -> bool {
        // A recipient domain is nobody's where it stands alone.
        self.names("tenant") || OWNED.iter().any(|name| *name != "domain" && self.names(name))
    }
}

/// Who people are, so that they can wish for mail; none is handed in.
fn post(parts: &Parts) -> Post {
    let people = Arc::clone(&parts.people);
    let person = move |id| {
        let user = people.user_for(&Actor::system("a test"), id, Action::Read).ok()?;
        let (address, narrowing) = (Address::parse(&user.email).ok()?, Arc::default());
        let place = "here".to_owned();
        Some(Person { address, role: user.role, narrowing, is_active: true, has_followed_link: true, place })
    };
    Post {
        person: Arc::new(person),
        egress: Arc::new(|_| None),
        hand_in: Arc::new(|_, _, _, _| Box::pin(async { Ok(()) })),
    }
}

struct World {
    parts: Parts,
    api: Router,
    shutdown: Shutdown,
}

impl World {
    /// Two tenants with everything; what is theirs. Operations are carried out.
    async fn new() -> (Self, Names, Names) {
        let parts = parts_over(Arc::new(MemoryStore::new())).await;
        parts.notifications.mail_with(post(&parts));
        let settings = Settings { requests_per_minute_max: 1_000_000, ..Settings::default() };
        let (api, shutdown) = (router(parts.clone(), &settings), Shutdown::new());
        tokio::spawn(Arc::clone(&parts.operations).run(shutdown.clone()));
        let world = Self { parts, api, shutdown };
        let shared = json!({"ipv4": "192.0.2.3", "ehlo": "shared.example.com", "shared": true});
        world.make("/vips", shared).await;
        let (shop, rival) = (world.furnished("shop", 10).await, world.furnished("rival", 20).await);
        (world, shop, rival)
    }

    async fn make(&self, path: &str, body: Value) -> Value {
        let (status, made) = call(&self.api, "POST", path, body).await;
        assert!(status.is_success(), "{path}: {made}");
        made
    }

    /// A tenant with something of everything that an operation names.
    async fn furnished(&self, tenant: &'static str, host: u8) -> Names {
        let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value}")).to_owned();
        let domain = format!("{tenant}.example.com");
        self.make("/tenants", json!({"name": tenant})).await;
        call(&self.api, "PATCH", &format!("/tenants/{tenant}"), json!({"may_move_to_shared": true})).await;
        let vip = format!("192.0.2.{host}");
        self.make("/vips", json!({"ipv4": vip, "ehlo": format!("mx.{domain}"), "tenant": tenant})).await;
        self.make(&format!("/tenants/{tenant}/domains"), json!({"domain": domain})).await;
        let own = format!("/tenants/{tenant}/domains/{domain}");
        assert_eq!(call(&self.api, "PATCH", &own, json!({"trusted": true})).await.0, StatusCode::OK);
        let set = call(&self.api, "PUT", &format!("{own}/return-path"), json!({})).await;
        assert_eq!(set.0, StatusCode::OK, "{}", set.1);
        let account = self.make("/smtp-accounts", json!({"tenant": tenant})).await;
        let email = format!("eve@{domain}");
        let user = text(&person(&self.api, tenant, &email, "support").await);
        log_in(&self.api, &email).await;
        let (_, sessions) = call(&self.api, "GET", &format!("/users/{user}/sessions"), Value::Null).await;
        let key = self.make("/keys", json!({"tenant": tenant, "scopes": ["queue:read"]})).await;
        let lists = format!("/tenants/{tenant}/suppressions");
        self.make(&lists, json!({"subject": "x@example.org"})).await;
        let hooks = format!("/tenants/{tenant}/webhooks");
        let hook = self.make(&hooks, json!({"url": "https://hook.example.com/in"})).await;
        let hook = text(&hook["webhook"]["id"]);
        self.make(&format!("{hooks}/{hook}/test"), Value::Null).await;
        let (_, attempts) = call(&self.api, "GET", &format!("{hooks}/{hook}/attempts"), Value::Null).await;
        let sweep = json!({"act": "hold", "filter": {"tenant": tenant, "recipient": "z@z.example"}, "seconds": 60});
        let sweep = self.make("/queue-sweeps", sweep).await;
        let trace = self.make("/traces", json!({"tenant": tenant})).await;
        let route = json!({"to": format!("relayed.{domain}"), "host": "relay.example", "port": 587, "tls": "starttls"});
        let route = self.make("/routes", route).await;
        let rule = json!({"to": format!("parked.{domain}"), "reason": "nobody there"});
        let rule = self.make("/destination-rules", rule).await;
        let operation = self.make(&format!("/tenants/{tenant}/suppression-exports"), Value::Null).await;
        self.until_finished(tenant).await;
        let mut names = Names::from([
            ("tenant", tenant.to_owned()),
            ("domain", domain),
            ("subject", "x@example.org".to_owned()),
            ("login", text(&account["account"]["login"])),
            ("user", user),
            ("session", text(&sessions[0]["id"])),
            ("key", text(&key["key"]["id"])),
            ("vip", vip),
            ("second_vip", "192.0.2.3".to_owned()),
            ("route", text(&route["id"])),
            ("site", "gmail".to_owned()),
            ("operation", text(&operation["id"])),
            ("webhook", hook),
            ("attempt", text(&attempts["rows"][0]["id"])),
            ("letter", "0".repeat(20)),
            ("passkey", "0".repeat(16)),
            ("sweep", sweep["number"].to_string()),
            ("trace", trace["trace"].to_string()),
            ("rule", rule["number"].to_string()),
        ]);
        names.insert("id", self.message(&names).await);
        names
    }

    /// A message of the tenant that is owed; its id.
    async fn message(&self, names: &Names) -> String {
        let letter =
            r#"{"tenant": "{tenant}", "from": "a@{domain}", "to": ["b@example.org"], "subject": "s", "text": "t"}"#;
        let sent = self.make("/messages", serde_json::from_str(&filled(letter, names)).unwrap()).await;
        sent["id"].as_str().unwrap_or_else(|| panic!("{sent}")).to_owned()
    }

    fn id(&self, tenant: &str) -> TenantId {
        self.parts.accounts.tenant_named(tenant).unwrap().id
    }

    async fn until_finished(&self, tenant: &str) {
        while self.parts.operations.unfinished_of(self.id(tenant)) > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    /// As with a door that takes everybody for an instance's admin.
    fn without_a_guard(mut self) -> Self {
        self.api = self.api.layer(axum::middleware::map_request(|mut request: Request<Body>| async move {
            request.extensions_mut().insert(Actor::local(0));
            request
        }));
        self
    }

    /// Asks as this actor.
    async fn ask(&self, actor: &Actor, operation: &Operation, names: &Names) -> (StatusCode, Value) {
        let uri = format!("/api/v1{}", operation.path(names));
        let mut request = Request::builder().method(operation.method.as_str()).uri(uri);
        let body = operation.body(names);
        if !body.is_null() {
            request = request.header("content-type", "application/json");
        }
        let mut request = request.body(if body.is_null() { Body::empty() } else { body.to_string().into() }).unwrap();
        request.extensions_mut().insert(actor.clone());
        let answer = self.api.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        let octets = answer.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&octets).unwrap_or(Value::Null);
        // Each message of a batch is answered for itself, and these have one.
        let of_message = body["results"][0]["status"].as_u64().and_then(|code| u16::try_from(code).ok());
        (of_message.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(status), body)
    }
}

/// Whether somebody may, by the table of permissions and the scopes that narrow it.
fn may(actor: &Actor, need: Need, tenant: TenantId) -> bool {
    match need {
        Of(resource, Action::Read) => actor.require(Permission::Read(resource, tenant)).is_ok(),
        Of(resource, Action::Write) => actor.require(Permission::Write(resource, tenant)).is_ok(),
        Everything => actor.require(Permission::Write(Tenant, tenant)).is_ok(),
        Instance(Action::Read) => actor.require(Permission::ReadInstance).is_ok(),
        Instance(Action::Write) => actor.require(Permission::ManageInstance).is_ok(),
        Nothing | Session => true,
        Local => actor.require(Permission::ManageInstance).is_ok(),
    }
}

/// What is wrong, as `operation by whom: answer`, and how many were refused and answered.
#[derive(Default)]
struct Walked {
    wrong: Vec<String>,
    refused: usize,
    done: usize,
}

impl Walked {
    fn assert_right(&self) {
        assert!(self.wrong.is_empty(), "{} wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
    }

    /// Whether something is said against this operation by this asker.
    fn blames(&self, name: &str, who: &str) -> bool {
        self.wrong.iter().any(|line| line.starts_with(&format!("{name} by {who}:")))
    }
}

/// Every operation by each role in its own tenant, the weakest first: who may not does nothing, and who may does it
/// to something that is still there.
async fn walk_by_roles(world: &World, mut names: Names) -> Walked {
    let own = world.id("shop");
    let roles = [
        Role::Support(own),
        Role::Analyst(own),
        Role::Developer(own),
        Role::TenantAdmin(own),
        Role::TenantOwner(own),
        Role::InstanceAdmin,
    ];
    let mut walked = Walked::default();
    for operation in operations() {
        let (name, need, _, _, otherwise) = operation.asked;
        if operation.is_of_a_message() {
            names.insert("id", world.message(&names).await);
        }
        let mut is_first = true;
        for role in roles {
            let actor = Actor::of(format!("user {}", role.word()), role);
            let may = may(&actor, need, own);
            if may && !is_first && name == "traces_read" {
                continue; // It waits ten seconds for something to be said; the first who may has shown it.
            }
            let (status, body) = world.ask(&actor, &operation, &names).await;
            let is_right = match (may, is_first) {
                (false, _) => status == StatusCode::FORBIDDEN,
                (true, true) => otherwise.map_or(status.is_success(), |expected| status.as_u16() == expected),
                // Perhaps it is gone by now.
                (true, false) => status != StatusCode::FORBIDDEN && !status.is_server_error(),
            };
            if !is_right {
                walked.wrong.push(format!("{name} by {}: {status} {body}", role.word()));
            }
            is_first &= !may;
            *(if may { &mut walked.done } else { &mut walked.refused }) += 1;
        }
        world.until_finished("shop").await;
    }
    world.shutdown.cancel();
    walked
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_in_its_own_tenant_what_the_table_says_and_nothing_else() {
    let (world, names, _) = World::new().await;
    let walked = walk_by_roles(&world, names).await;
    walked.assert_right();
    assert!(walked.refused > 250 && walked.done > 300, "{} {}", walked.refused, walked.done);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_walk_by_roles_finds_every_operation_that_forgets_to_ask_who_may() {
    let (world, names, _) = World::new().await;
    let own = world.id("shop");
    let walked = walk_by_roles(&world.without_a_guard(), names).await;
    let support = Actor::of("support", Role::Support(own));
    let is_missed = |operation: &Operation| {
        let (name, need, ..) = operation.asked;
        !may(&support, need, own) && !walked.blames(name, "support")
    };
    let missed: Vec<&str> = operations().iter().filter(|one| is_missed(one)).map(|one| one.asked.0).collect();
    assert!(missed.is_empty(), "{missed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_one_scope_may_nothing_that_asks_for_another() {
    let (world, names, _) = World::new().await;
    let own = world.id("shop");
    let scopes =
        RESOURCES.iter().flat_map(|resource| [READ, WRITE].map(|action| Scope { resource: *resource, action }));
    let mut walked = Walked::default();
    for scope in scopes {
        let narrowing = Arc::new(Narrowing { scopes: Some(vec![scope]), ..Narrowing::default() });
        for role in [Role::TenantOwner(own), Role::InstanceAdmin] {
            let actor = Actor { narrowing: Arc::clone(&narrowing), ..Actor::of("a key", role) };
            for operation in operations().iter().filter(|operation| !may(&actor, operation.asked.1, own)) {
                let (status, body) = world.ask(&actor, operation, &names).await;
                // What it may not read either may look as if it did not exist.
                if ![StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status) {
                    let who = format!("{} with {scope}", role.word());
                    walked.wrong.push(format!("{} by {who}: {status} {body}", operation.asked.0));
                }
                walked.refused += 1;
            }
        }
    }
    world.shutdown.cancel();
    walked.assert_right();
    assert!(walked.refused > 5_000, "{}", walked.refused);
}

#[test]
fn the_walk_fails_for_an_operation_it_does_not_know_and_for_one_that_is_gone() {
    let document = super::document::document();
    let wrong = |document: &Value| operations_of(document).map(|found| found.len()).unwrap_err();
    let mut longer = document.clone();
    longer["paths"]["/tenants/{tenant}/secrets"] = json!({"get": {"operationId": "secrets_list"}});
    assert!(wrong(&longer).starts_with("secrets_list is not in ASKED"));
    let mut shorter = document.clone();
    shorter["paths"].as_object_mut().unwrap().remove("/status");
    assert_eq!(wrong(&shorter), "ASKED names status_show, which is gone");
    let mut other = document.clone();
    other["paths"]["/status"]["get"]["requestBody"] = json!({});
    assert!(wrong(&other).starts_with("status_show: a body"));
    assert!(operations_of(&document).is_ok_and(|found| found.len() == ASKED.len() && found.len() > 145));
}

/// Who has no part in what these tests make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    /// A person bound to SMTP accounts, and to none of these.
    Accounts,
    /// A key bound to a sending domain that is not theirs.
    Domains,
}

/// Whether an operation is not for it at all, as `docs/operate/users.md` says; the others are of another resource,
/// or lists that leave out what is not its.
fn is_closed(operation: &Operation, bound: Bound) -> bool {
    let (name, need, ..) = operation.asked;
    match (need, bound) {
        (Of(Webhooks | Audit, _) | Everything, _) => true,
        (Of(Suppressions, _), Bound::Domains) => true,
        // Lists of operations show those on lists of its accounts.
        (Of(Suppressions, _), Bound::Accounts) => !name.starts_with("operations_") || operation.names("operation"),
        (Of(SmtpAccounts, _), Bound::Accounts) => operation.names("login") || name == "smtp_accounts_add",
        // Whose login would send as every domain.
        (Of(SmtpAccounts, action), Bound::Domains) => action == WRITE,
        (Of(Messages, WRITE), _) => true,
        (Of(Queue | Messages, _), _) => {
            ["id", "trace", "sweep"].iter().any(|one| operation.names(one))
                || ["traces_add", "queue_sweeps_add"].contains(&name)
        }
        (Of(Statistics, _), bound) => bound == Bound::Domains,
        (Of(Domains, _), bound) => bound == Bound::Domains && operation.path.contains("{domain}"),
        // It gives no role, opens no way to what somebody else has, and hands on no more than it has.
        (Of(Users, WRITE), _) => ["users_invite", "users_reset", "users_remove_factor"].contains(&name),
        (Of(Keys, WRITE), bound) => bound == Bound::Accounts && ["keys_add", "keys_rotate"].contains(&name),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_part_in_a_tenants_mail_gets_nothing_of_it_by_any_route() {
    let (world, names, _) = World::new().await;
    let own = world.id("shop");
    let narrowed =
        |narrowing| Actor { narrowing: Arc::new(narrowing), ..Actor::of("narrowed", Role::TenantOwner(own)) };
    let elsewhere = Some(vec![Domain::parse("elsewhere.example").unwrap()]);
    let bound = [
        (Bound::Accounts, narrowed(Narrowing { accounts: Some(BTreeMap::new()), ..Narrowing::default() })),
        (Bound::Domains, narrowed(Narrowing { domains: elsewhere, ..Narrowing::default() })),
    ];
    let mut walked = Walked::default();
    // A batch is answered for each message, and one message is walked.
    for operation in operations().iter().filter(|operation| operation.asked.0 != "messages_send_batch") {
        for (bound, actor) in &bound {
            let (status, body) = world.ask(actor, operation, &names).await;
            let told = body.to_string().replace(&format!("eve@{}", names["domain"]), "a person");
            let thing = if *bound == Bound::Accounts { "login" } else { "domain" };
            let tells = operation.method == "GET" && [thing, "id"].iter().any(|thing| told.contains(&names[thing]));
            let is_kept_out = [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&status);
            let is_closed = is_closed(operation, *bound);
            if (is_closed && !is_kept_out) || tells || status.is_server_error() {
                walked.wrong.push(format!("{} by {bound:?}: {status} {body}", operation.asked.0));
            }
            walked.refused += usize::from(is_closed);
        }
    }
    world.shutdown.cancel();
    walked.assert_right();
    assert!(walked.refused > 100, "{}", walked.refused);
}

/// Requests that name the own tenant and something of the other one, where [`ASKED`] names it by its tenant.
const MIXED: &[(&str, &str, &str)] = &[
    (
        "POST",
        "/messages",
        r#"{"tenant": "shop", "smtp_account": "{login}", "from": "a@shop.example.com",
        "to": ["b@example.org"], "subject": "s", "text": "t"}"#,
    ),
    (
        "POST",
        "/users",
        r#"{"tenant": "shop", "email": "n@example.com", "role": "support", "smtp_accounts": {"{login}": "read"}}"#,
    ),
    ("GET", "/tenants/shop/suppressions?smtp_account={login}", ""),
    ("POST", "/tenants/shop/suppressions?smtp_account={login}", r#"{"subject": "y@example.org"}"#),
    ("POST", "/tenants/shop/suppression-exports?smtp_account={login}", ""),
    ("GET", "/tenants/shop/operations/{operation}", ""),
    ("GET", "/tenants/shop/operations/{operation}/result", ""),
    ("POST", "/tenants/shop/operations/{operation}/cancel", ""),
    ("GET", "/tenants/shop/webhooks/{webhook}", ""),
    ("DELETE", "/tenants/shop/webhooks/{webhook}", ""),
    ("POST", "/tenants/shop/webhooks/{webhook}/attempts/{attempt}/replay", ""),
    ("GET", "/tenants/shop/domains/{domain}", ""),
    ("DELETE", "/tenants/shop/domains/{domain}", ""),
    ("GET", "/statistics?smtp_account={login}", ""),
    ("GET", "/statistics?vip={vip}", ""),
    ("GET", "/queue?tenant=shop&smtp_account={login}", ""),
    ("GET", "/queue?tenant=shop&vip={vip}", ""),
    ("GET", "/messages?smtp_account={login}", ""),
    (
        "POST",
        "/queue-sweeps",
        r#"{"act": "hold", "filter": {"tenant": "shop", "smtp_account": "{login}"}, "seconds": 60}"#,
    ),
    ("POST", "/traces", r#"{"tenant": "shop", "vip": "{vip}"}"#),
    ("POST", "/queue/{own_id}/move", r#"{"to": "{vip}"}"#),
    ("PATCH", "/users/{own_user}", r#"{"smtp_accounts": {"{login}": "write"}}"#),
    ("PATCH", "/tenants/shop", r#"{"default_vip": "{vip}"}"#),
    ("PATCH", "/tenants/shop/suppressions?smtp_account={login}", r#"{"add": [{"subject": "y@example.org"}]}"#),
    ("POST", "/tenants/shop/suppression-imports?smtp_account={login}", r#""y@example.org""#),
    ("GET", "/tenants/shop/suppressions/x@example.org?smtp_account={login}", ""),
    ("DELETE", "/tenants/shop/suppressions/x@example.org?smtp_account={login}", ""),
    ("GET", "/queue-totals?tenant=shop&smtp_account={login}", ""),
    ("GET", "/queue-totals?tenant=shop&vip={vip}", ""),
    ("GET", "/queue-shape?tenant=shop&smtp_account={login}", ""),
    ("GET", "/queue-shape?tenant=shop&vip={vip}", ""),
    ("GET", "/statistics/csv?smtp_account={login}", ""),
    ("POST", "/queue-sweeps", r#"{"act": "hold", "filter": {"tenant": "shop", "vip": "{vip}"}, "seconds": 60}"#),
];

/// Names like these of things that do not exist.
fn nowhere(names: &Names) -> Names {
    let other = |name: &str, value: &String| match name {
        "tenant" => "nowhere".to_owned(),
        "domain" => "nowhere.example.com".to_owned(),
        "vip" => "192.0.2.250".to_owned(),
        "sweep" | "trace" => format!("9{value}"),
        _ if OWNED.contains(&name) => {
            let place = value.len() - 3;
            let changed = if &value[place..=place] == "0" { "1" } else { "0" };
            format!("{}{changed}{}", &value[..place], &value[place + 1..])
        }
        _ => value.clone(),
    };
    names.iter().map(|(name, value)| (*name, other(name, value))).collect()
}

/// What an answer says, without what differs in any two: the request's id, and what was asked for by name.
fn said(answer: &mut Answer, names: &Names) -> String {
    let of_message = answer.body.get_mut("results").and_then(|results| results.get_mut(0)?.get_mut("problem"));
    if let Some(problem) = of_message.and_then(Value::as_object_mut) {
        problem.remove("request_id");
    }
    if let Some(body) = answer.body.as_object_mut() {
        body.remove("request_id");
    }
    let mut text = answer.body.to_string();
    for (name, value) in names.iter().filter(|(_, value)| value.len() > 5) {
        text = text.replace(value.as_str(), &format!("{{{name}}}"));
    }
    text.replace(&names["tenant"], "{tenant}")
}

/// Who asks, each over the network.
type Asker = (&'static str, Sent);

/// Keys and people of the shop: whole ones, and such as are bound to a domain or to SMTP accounts.
async fn askers(world: &World) -> Vec<Asker> {
    let api = &world.api;
    let tenants =
        ["tenant", "users", "keys", "smtp-accounts", "domains", "suppressions", "queue", "messages", "webhooks"];
    let scopes = tenants.iter().map(|scope| format!("{scope}:write"));
    let scopes: Vec<String> = scopes.chain(["statistics:read".to_owned(), "audit:read".to_owned()]).collect();
    let key = world.make("/keys", json!({"tenant": "shop", "scopes": scopes})).await;
    let bound = json!({"tenant": "shop", "scopes": scopes, "domains": ["shop.example.com"]});
    let bound = world.make("/keys", bound).await;
    let mut askers = vec![("key", Sent::key(&key["text"])), ("key of a domain", Sent::key(&bound["text"]))];
    for role in ["owner", "admin", "developer", "analyst", "support", "owner of accounts"] {
        let email = format!("{}@example.com", role.replace(' ', "-"));
        let user = person(api, "shop", &email, role.split(' ').next().unwrap()).await;
        if role == "owner of accounts" {
            let path = format!("/users/{}", user.as_str().unwrap());
            assert_eq!(call(api, "PATCH", &path, json!({"smtp_accounts": {}})).await.0, StatusCode::OK, "{user}");
        }
        let (cookie, token) = log_in(api, &email).await;
        askers.push((role, Sent::default().with("cookie", cookie).with("x-csrf-token", token)));
    }
    askers
}

/// Asks for something, and for something that does not exist, and returns the first answer and whether they differ.
async fn asked_twice(
    api: &Router,
    sent: &Sent,
    (method, path, body): (&str, &str, &str),
    (theirs, nobodys): (&Names, &Names),
) -> (Answer, bool) {
    let mut answers = Vec::new();
    for names in [theirs, nobodys] {
        let body = filled(body, names);
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() };
        let mut answer = ask(api, sent, method, &filled(path, names), body).await;
        let said = said(&mut answer, names);
        answers.push((answer, said));
    }
    let (nobodys, theirs) = (answers.pop().unwrap(), answers.pop().unwrap());
    let differs = (theirs.0.status, &theirs.1) != (nobodys.0.status, &nobodys.1);
    (theirs.0, differs)
}

/// Every operation by everybody of the shop, with what is the rival's.
async fn walk_with_foreign_things(world: &World, askers: &[Asker], mut rival: Names) -> Walked {
    let mut walked = Walked::default();
    for operation in operations() {
        let (name, need, query, body, _) = operation.asked;
        if need == Session {
            continue;
        }
        if operation.is_of_a_message() {
            rival.insert("id", world.message(&rival).await);
        }
        let nobodys = nowhere(&rival);
        let path = format!("{}?{query}", operation.path);
        for (who, sent) in askers {
            let asked = (operation.method.as_str(), path.as_str(), body);
            let (answer, differs) = asked_twice(&world.api, sent, asked, (&rival, &nobodys)).await;
            let is_right = match need {
                Instance(_) | Local => [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&answer.status),
                // Each message is answered for itself.
                _ if name == "messages_send_batch" => !answer.body.to_string().contains("queued"),
                _ if operation.names_something() => answer.status == StatusCode::NOT_FOUND,
                _ => answer.status.is_success() && !answer.body.to_string().contains("rival"),
            };
            if !is_right || differs {
                let told = if differs { " unlike what does not exist" } else { "" };
                walked.wrong.push(format!("{name} by {who}: {}{told} {}", answer.status, answer.body));
            }
            walked.refused += 1;
        }
    }
    walked
}

/// Every operation with what is the shop's, but for one thing of the rival's; then [`MIXED`].
async fn walk_with_one_foreign_thing(world: &World, askers: &[Asker], own: &Names, rival: &Names) -> Walked {
    let (mut walked, nobodys) = (Walked::default(), nowhere(rival));
    let kept_out = [StatusCode::NOT_FOUND, StatusCode::FORBIDDEN, StatusCode::UNPROCESSABLE_ENTITY];
    let with = |name: &'static str, from: &Names| {
        let mut names = own.clone();
        names.insert(name, from[name].clone());
        names
    };
    let mut requests = Vec::new();
    for operation in operations().into_iter().filter(|operation| operation.asked.1 != Session) {
        for name in OWNED.into_iter().filter(|name| operation.names(name)) {
            let (said, _, query, body, _) = operation.asked;
            let path = format!("{}?{query}", operation.path);
            let names = (with(name, rival), with(name, &nobodys));
            requests.push((format!("{said} ({name})"), operation.method.clone(), path, body, names));
        }
    }
    for (method, path, body) in MIXED {
        let with_own = |names: &Names| {
            let mut names = names.clone();
            names.extend([("own_id", own["id"].clone()), ("own_user", own["user"].clone())]);
            names
        };
        let (said, names) = (format!("{method} {path}"), (with_own(rival), with_own(&nobodys)));
        requests.push((said, (*method).to_owned(), (*path).to_owned(), *body, names));
    }
    for (name, method, path, body, (theirs, nobodys)) in &requests {
        for (who, sent) in askers {
            let (answer, differs) = asked_twice(&world.api, sent, (method, path, body), (theirs, nobodys)).await;
            let is_right = kept_out.contains(&answer.status)
                || (name.starts_with("messages_send_batch") && !answer.body.to_string().contains("queued"));
            if !is_right || differs {
                let told = if differs { " unlike what does not exist" } else { "" };
                walked.wrong.push(format!("{name} by {who}: {}{told} {}", answer.status, answer.body));
            }
            walked.refused += 1;
        }
    }
    walked
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_things_look_like_what_does_not_exist_to_everybody_by_every_route() {
    let (world, own, rival) = World::new().await;
    let askers = askers(&world).await;
    let last = "/audit?tenant=rival&limit=1";
    let (_, before) = call(&world.api, "GET", last, Value::Null).await;
    // Bound to the other tenant's domain, which is its own matter, and opens nothing of that tenant.
    let stray = json!({"tenant": "shop", "scopes": ["domains:write", "messages:write", "queue:write"],
        "domains": ["rival.example.com"]});
    let stray = world.make("/keys", stray).await;
    let stray = [("key of a foreign domain", Sent::key(&stray["text"]))];
    let whole = walk_with_foreign_things(&world, &[&askers[..], &stray[..]].concat(), rival.clone()).await;
    let part = walk_with_one_foreign_thing(&world, &askers, &own, &rival).await;
    world.shutdown.cancel();
    let (_, after) = call(&world.api, "GET", last, Value::Null).await;
    let walked = Walked { wrong: [whole.wrong, part.wrong].concat(), refused: whole.refused + part.refused, done: 0 };
    walked.assert_right();
    assert!(walked.refused > 2_000, "{}", walked.refused);
    assert_eq!(before["rows"][0]["number"], after["rows"][0]["number"], "nothing of the rival's was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_walk_finds_every_operation_that_forgets_whose_a_thing_is() {
    let (world, _, rival) = World::new().await;
    let askers = [("nobody", Sent::default())];
    let walked = walk_with_foreign_things(&world.without_a_guard(), &askers, rival).await;
    let missed = operations().into_iter().map(|operation| (operation.asked, operation.names_something()));
    let missed = missed.filter(|((name, need, ..), names_something)| {
        let must_be_found = match need {
            Of(..) | Everything => *names_something,
            Instance(_) | Local | Nothing | Session => false,
        };
        must_be_found && !walked.blames(name, "nobody")
    });
    let missed: Vec<&str> = missed.map(|(asked, _)| asked.0).collect();
    assert!(missed.is_empty(), "{missed:?}");
}
