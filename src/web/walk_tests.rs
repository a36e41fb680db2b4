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

use super::door_tests::{Sent, ask, log_in, person};
use super::tests::{call, parts_over};
use super::{Parts, Settings, router};
use crate::access::{Action, Actor, Narrowing, Permission, Resource, Role};
use crate::background::Shutdown;
use crate::mail::{Domain, TenantId};
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
    /// Of one's own session, without anything that could be another's; see `door_tests`.
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
    ("session_log_out", Session, "", "", None),
    ("session_show", Session, "", "", None),
    ("session_log_in", Session, "", "", None),
    ("session_confirm", Session, "", "", None),
    ("session_new_codes", Session, "", "", None),
    ("session_redeem", Session, "", "", None),
    ("session_remove_factor", Session, "", "", None),
    ("session_offer_factor", Session, "", "", None),
    ("session_prove_factor", Session, "", "", None),
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
    ("domains_cancel_rotation", Of(Domains, WRITE), "", "", None),
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
    ("webhooks_replay_attempt", Of(Webhooks, WRITE), "", "", None),
    ("webhooks_replay", Of(Webhooks, WRITE), "", r#"{"from": "2026-01-01T00:00:00Z"}"#, None),
    ("webhooks_rotate", Of(Webhooks, WRITE), "", r#"{"overlap_hours": 1}"#, None),
    ("webhooks_test", Of(Webhooks, WRITE), "", "", None),
    ("tls_failing_list", Instance(READ), "", "", None),
    ("tls_policies_show", Instance(READ), "", "", None),
    ("tls_reports_list", Instance(READ), "", "", None),
    ("tls_reports_show", Instance(READ), "", "", None),
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
    ("vips_show", Instance(READ), "", "", None),
    ("vips_change", Instance(WRITE), "", r#"{"ehlo": "mx.{tenant}.example.com"}"#, None),
];

/// An operation of the document.
struct Operation {
    method: String,
    path: String,
    asked: Asked,
}

/// Every one: those that remove things last, and each in the order of the document.
fn operations() -> Vec<Operation> {
    let document = super::document::document();
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, said) in methods.as_object().unwrap() {
            let name = said["operationId"].as_str().unwrap();
            let asked = ASKED.iter().find(|asked| asked.0 == name);
            let asked =
                *asked.unwrap_or_else(|| panic!("{name} is not in ASKED: say what it needs and how it is asked"));
            let has_body = said["requestBody"].is_object();
            assert!(has_body != asked.3.is_empty() || asked.1 == Session, "{name}: a body, if it has one");
            found.push(Operation { method: method.to_uppercase(), path: path.clone(), asked });
        }
    }
    assert_eq!(found.len(), ASKED.len(), "ASKED names an operation that is gone");
    found.sort_by_key(|operation| (operation.method == "DELETE", operation.path == "/tenants/{tenant}"));
    found
}

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

    /// Whether the request names something of the tenant.
    fn names_something(&self) -> bool {
        // A recipient domain, a site, a rule, a letter are nobody's.
        let own = ["{tenant}", "{login}", "{key}", "{user}", "{id}", "{webhook}", "{sweep}", "{trace}", "{vip}"];
        let path = format!("{}?{}", self.path, self.asked.2);
        own.iter().any(|name| path.contains(name) || self.asked.3.contains(name))
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
        let route = json!({"on_demand": true, "host": "relay.example", "port": 587, "tls": "starttls"});
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
            ("session", text(&sessions["rows"][0]["id"])),
            ("key", text(&key["key"]["id"])),
            ("vip", vip),
            ("second_vip", "192.0.2.3".to_owned()),
            ("route", text(&route["id"])),
            ("site", "gmail".to_owned()),
            ("operation", text(&operation["id"])),
            ("webhook", hook),
            ("attempt", text(&attempts["rows"][0]["id"])),
            ("letter", "0".repeat(20)),
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
        (status, serde_json::from_slice(&octets).unwrap_or(Value::Null))
    }
}

/// Whether somebody of this role may, by the table of permissions.
fn may(role: Role, need: Need, tenant: TenantId) -> bool {
    let actor = Actor::of("asked of the table", role);
    match need {
        Of(resource, Action::Read) => actor.require(Permission::Read(resource, tenant)).is_ok(),
        Of(resource, Action::Write) => actor.require(Permission::Write(resource, tenant)).is_ok(),
        Everything => actor.require(Permission::Write(Tenant, tenant)).is_ok(),
        Instance(Action::Read) => actor.require(Permission::ReadInstance).is_ok(),
        Instance(Action::Write) => actor.require(Permission::ManageInstance).is_ok(),
        Nothing => true,
        Session => false,
        Local => role == Role::InstanceAdmin,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_may_do_in_its_own_tenant_what_the_table_says_and_nothing_else() {
    let (world, mut names, _) = World::new().await;
    let own = world.id("shop");
    // The weakest first: who may not does nothing, and who may does it to something that is still there.
    let roles = [
        Role::Support(own),
        Role::Analyst(own),
        Role::Developer(own),
        Role::TenantAdmin(own),
        Role::TenantOwner(own),
        Role::InstanceAdmin,
    ];
    let (mut wrong, mut refused, mut done) = (Vec::new(), 0, 0);
    for operation in operations() {
        let (name, need, _, _, otherwise) = operation.asked;
        if need == Session {
            assert!(operation.path.starts_with("/session"), "{name}");
            continue;
        }
        if operation.is_of_a_message() {
            names.insert("id", world.message(&names).await);
        }
        let mut is_first = true;
        for role in roles {
            let actor = Actor::of(format!("user {}", role.word()), role);
            let may = may(role, need, own);
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
                wrong.push(format!("{name} by {}: {status} {}", role.word(), body["detail"]));
            }
            is_first &= !may;
            *(if may { &mut done } else { &mut refused }) += 1;
        }
        world.until_finished("shop").await;
    }
    world.shutdown.cancel();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(refused > 250 && done > 300, "{refused} {done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_part_in_a_tenants_mail_gets_nothing_of_it_by_any_route() {
    let (world, names, _) = World::new().await;
    let own = world.id("shop");
    let narrowed =
        |narrowing| Actor { narrowing: Arc::new(narrowing), ..Actor::of("narrowed", Role::TenantOwner(own)) };
    let elsewhere = Some(vec![Domain::parse("elsewhere.example").unwrap()]);
    let no_account = narrowed(Narrowing { accounts: Some(BTreeMap::new()), ..Narrowing::default() });
    let other_domain = narrowed(Narrowing { domains: elsewhere, ..Narrowing::default() });
    let mut wrong = Vec::new();
    for operation in operations() {
        let (name, need, ..) = operation.asked;
        let path = operation.path.as_str();
        let of_an_account = path.contains("{login}");
        for (who, actor) in [("no account", &no_account), ("another domain", &other_domain)] {
            let is_by_account = who == "no account";
            // What it must not reach; the rest is another resource's, or a list that leaves out what is not its.
            let is_closed = match need {
                Of(Suppressions, _) => {
                    !(name.starts_with("operations_") && is_by_account && !path.contains("{operation}"))
                }
                Of(Webhooks | Audit, _) | Everything => true,
                Of(SmtpAccounts, action) => {
                    (is_by_account && of_an_account)
                        || (action == WRITE && !is_by_account)
                        || name == "smtp_accounts_add"
                }
                Of(Messages, WRITE) => true,
                Of(Queue | Messages, _) => {
                    operation.is_of_a_message()
                        || path.contains("{trace}")
                        || path.contains("{sweep}")
                        || name == "traces_add"
                        || name == "queue_sweeps_add"
                }
                Of(Statistics, _) => !is_by_account,
                Of(Domains, _) => !is_by_account && path.contains("{domain}"),
                Of(Keys | Users, WRITE) => false,
                _ => false,
            };
            if !is_closed || (name == "messages_send_batch") {
                continue;
            }
            let (status, body) = world.ask(actor, &operation, &names).await;
            let is_kept_out = [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND, StatusCode::UNPROCESSABLE_ENTITY];
            let is_right = is_kept_out.contains(&status) && (status != is_kept_out[2] || name == "messages_send");
            if !is_right {
                wrong.push(format!("{name} by {who}: {status} {body}"));
            }
        }
    }
    world.shutdown.cancel();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Requests that name the own tenant and something of the other one.
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
];

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_things_look_like_what_does_not_exist_to_everybody_by_every_route() {
    let (world, _, rival) = World::new().await;
    let api = &world.api;
    let tenants =
        ["tenant", "users", "keys", "smtp-accounts", "domains", "suppressions", "queue", "messages", "webhooks"];
    let scopes = tenants.iter().map(|scope| format!("{scope}:write"));
    let scopes: Vec<String> = scopes.chain(["statistics:read".to_owned(), "audit:read".to_owned()]).collect();
    let key = world.make("/keys", json!({"tenant": "shop", "scopes": scopes})).await;
    let bound = json!({"tenant": "shop", "scopes": scopes, "domains": ["shop.example.com"]});
    let bound = world.make("/keys", bound).await;
    let mut askers = vec![("key", Sent::key(&key["text"])), ("key of a domain", Sent::key(&bound["text"]))];
    for role in ["owner", "admin", "developer", "analyst", "support"] {
        let email = format!("{role}@example.com");
        let user = person(api, "shop", &email, role).await;
        let (cookie, token) = log_in(api, &email).await;
        askers.push((role, Sent::default().with("cookie", cookie).with("x-csrf-token", token)));
        if role == "owner" {
            let email = "narrow@example.com";
            let user_of_accounts = person(api, "shop", email, role).await;
            let path = format!("/users/{}", user_of_accounts.as_str().unwrap());
            let change = json!({"smtp_accounts": {}});
            assert_eq!(call(api, "PATCH", &path, change).await.0, StatusCode::OK, "{user}");
            let (cookie, token) = log_in(api, email).await;
            askers.push(("owner of accounts", Sent::default().with("cookie", cookie).with("x-csrf-token", token)));
        }
    }
    let last = "/audit?tenant=rival&limit=1";
    let (_, before) = call(api, "GET", last, Value::Null).await;
    let (mut wrong, mut walked) = (Vec::new(), 0);
    for operation in operations() {
        let (name, need, ..) = operation.asked;
        if need == Session {
            continue; // One's own: there is nobody else's thing to name.
        }
        for (who, sent) in &askers {
            walked += 1;
            let (path, body) = (operation.path(&rival), operation.body(&rival));
            let answer = ask(api, sent, &operation.method, &path, body).await;
            let is_right = match need {
                Instance(_) | Local => [StatusCode::FORBIDDEN, StatusCode::NOT_FOUND].contains(&answer.status),
                // Each message is answered for itself.
                _ if name == "messages_send_batch" => !answer.body.to_string().contains("queued"),
                _ if operation.names_something() => answer.status == StatusCode::NOT_FOUND,
                _ => answer.status.is_success(),
            };
            let tells = answer.body.to_string();
            if !is_right || tells.contains("rival.example") || tells.contains(&rival["id"]) && name != "messages_show" {
                wrong.push(format!("{name} by {who}: {} {tells}", answer.status));
            }
        }
    }
    for (method, path, body) in MIXED {
        for (who, sent) in &askers {
            let body = filled(body, &rival);
            let body = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() };
            let answer = ask(api, sent, method, &filled(path, &rival), body).await;
            let is_right = [StatusCode::NOT_FOUND, StatusCode::FORBIDDEN, StatusCode::UNPROCESSABLE_ENTITY];
            if !is_right.contains(&answer.status) || answer.body.to_string().contains("rival.example") {
                wrong.push(format!("{method} {path} by {who}: {} {}", answer.status, answer.body));
            }
        }
    }
    world.shutdown.cancel();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(walked > 1_000, "{walked}");
    let (_, after) = call(api, "GET", last, Value::Null).await;
    assert_eq!(before["rows"][0]["number"], after["rows"][0]["number"], "nothing of the rival's was changed");
}
