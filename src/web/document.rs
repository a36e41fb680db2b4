//! The OpenAPI document, made from the handlers, and a page for people made from the document.
//!
//! Both are in the binary and load nothing from elsewhere. Easy to get wrong: what every operation
//! may answer when it does not do what was asked is added here, once, so that no handler forgets it.

mod fresh;

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::{api, codes, replay};
#[cfg(test)]
pub use fresh::FRESH;
pub use fresh::asks;

/// Statuses every operation may answer with, each with when.
const REFUSALS: &[(&str, &str)] = &[
    ("400", "the request could not be read"),
    ("401", "no key or session, or not a good one"),
    ("403", "the role or the key's scopes do not reach"),
    ("404", "there is none, or it is another tenant's"),
    ("409", "it clashes with what is there, or with an earlier request of the same Idempotency-Key"),
    ("412", "it is not what If-Match names"),
    ("413", "the body is too large"),
    ("415", "the body is not JSON"),
    ("422", "a value is not acceptable"),
    ("429", "too many requests; Retry-After says when"),
    ("500", "ours; the log has the details"),
    ("503", "ours; later"),
];
/// In the place of 403 where a fresh proof is asked for.
const PROOF: (&str, &str) = (
    "403-proof",
    "the role or the key's scopes do not reach; or, with the code `confirm_identity`, a person must prove who it is \
     anew: POST /session/confirm, then the same again",
);
const STYLE: &str = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
    code{background:#f2f2f2;padding:0 .2em}h2{margin-top:2em}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}";
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// The document.
pub fn document() -> Value {
    let mut document = serde_json::to_value(api::document()).unwrap_or_default();
    document["info"] = json!({
        "title": "postern admin API",
        "version": "v1",
        "description": "People, keys, tenants, domains, SMTP accounts and the queue of one instance.",
        "license": {"name": "MIT OR Apache-2.0"},
    });
    document["servers"] = json!([{"url": "/api/v1"}]);
    document["security"] = json!([{"key": []}, {"session": [], "token": []}]);
    document["components"]["securitySchemes"] = json!({
        "key": {"type": "http", "scheme": "bearer"},
        "session": {"type": "apiKey", "in": "cookie", "name": "__Host-postern"},
        "token": {"type": "apiKey", "in": "header", "name": "X-CSRF-Token"},
    });
    let problem = json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemJson"}}});
    for (status, when) in REFUSALS.iter().chain([&PROOF]) {
        document["components"]["responses"][status] = json!({"description": when, "content": problem});
    }
    let keys_hours = replay::KEYS_TIME.as_secs() / 3600;
    document["components"]["parameters"] = json!({
        "IdempotencyKey": {
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": format!("The same request with the same key is carried out once within {keys_hours} hours; \
                a repeat is answered as the first was, with Idempotency-Replayed: true."),
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        },
        "IfMatch": {
            "name": "If-Match", "in": "header", "required": false,
            "description": "An ETag of this resource: changed only if it still has it, else 412.",
            "schema": {"type": "string"},
        },
    });
    document["components"]["headers"] = json!({
        "ETag": {"description": "Names what is shown, counters left out; for If-Match.", "schema": {"type": "string"}},
        "Replayed": {"description": "`true` on an answer that was given before.", "schema": {"type": "string"}},
    });
    for (path_text, path) in document["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in path.as_object_mut().into_iter().flatten() {
            describe_layers(path_text, method, operation);
            for (status, _) in REFUSALS {
                operation["responses"][status] = json!({"$ref": format!("#/components/responses/{status}")});
            }
            if asks(method, path_text) {
                operation["x-fresh-proof"] = json!(true);
                operation["responses"]["403"] = json!({"$ref": format!("#/components/responses/{}", PROOF.0)});
            }
        }
    }
    without_whole_defaults(&mut document["components"]["schemas"]);
    document
}

/// A field that is an object has no default of its own: those of its fields say it, and makers of clients
/// cannot read another.
fn without_whole_defaults(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("default").is_some_and(Value::is_object) && !fields.contains_key("properties") {
                fields.remove("default");
            }
            fields.values_mut().for_each(without_whole_defaults);
        }
        Value::Array(values) => values.iter_mut().for_each(without_whole_defaults),
        _ => {}
    }
}

/// Posts of who is nobody yet.
const OPEN: &[&str] = &["/session", "/session/redeem", "/session/forgotten"];

/// What the layers around every handler add to an operation: see `replay` and `conditional`.
fn describe_layers(path: &str, method: &str, operation: &mut Value) {
    let has_actor = method != "post" || !OPEN.contains(&path);
    if !has_actor {
        operation["security"] = json!([]);
    }
    let parameter = match method {
        "post" if has_actor => Some("IdempotencyKey"),
        "patch" | "put" | "delete" => Some("IfMatch"),
        _ => None,
    };
    if let Some(name) = parameter {
        let reference = json!({"$ref": format!("#/components/parameters/{name}")});
        match operation["parameters"].as_array_mut() {
            Some(parameters) => parameters.push(reference),
            None => operation["parameters"] = json!([reference]),
        }
    }
    let header = match method {
        "post" if has_actor => Some(("Idempotency-Replayed", "Replayed")),
        "get" | "patch" | "put" => Some(("ETag", "ETag")),
        _ => None,
    };
    let Some((name, of)) = header else { return };
    for (status, answer) in operation["responses"].as_object_mut().into_iter().flatten() {
        if status.starts_with('2') {
            answer["headers"][name] = json!({"$ref": format!("#/components/headers/{of}")});
        }
    }
}

/// `/api/openapi.json`, `/api/reference` and its style, for anybody.
pub fn router() -> Router {
    let document = Arc::new(document());
    let page: Arc<str> = page(&document).into();
    let text: Arc<str> = document.to_string().into();
    let answer = |kind: &'static str, text: Arc<str>| {
        get(move || async move {
            let mut response: Response = text.to_string().into_response();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
            response
        })
    };
    Router::new()
        .route("/api/openapi.json", answer("application/json", text))
        .route("/api/reference", answer("text/html; charset=utf-8", page))
        .route("/api/reference.css", answer("text/css; charset=utf-8", STYLE.into()))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn page(document: &Value) -> String {
    let text = |value: &Value| escaped(value.as_str().unwrap_or_default());
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>postern admin API</title>\
         <link rel=\"stylesheet\" href=\"reference.css\"><h1>postern admin API</h1>\
         <p>For programs: <a href=\"openapi.json\">openapi.json</a>. Send a key as <code>Authorization: Bearer</code>, \
         or a session's cookie with <code>X-CSRF-Token</code>. Refusals are problem documents (RFC 9457); \
         their codes are <a href=\"#codes\">at the end</a>.</p>",
    );
    for (path, operations) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in operations.as_object().into_iter().flatten() {
            let (method, path) = (method.to_uppercase(), escaped(path));
            let _ = write!(page, "<h2><code>{method} /api/v1{path}</code></h2><p>{}</p>", text(&operation["summary"]));
            let schema = |content: &Value| {
                let name = content["content"]["application/json"]["schema"]["$ref"].as_str().unwrap_or_default();
                escaped(name.rsplit('/').next().unwrap_or_default())
            };
            if operation["x-fresh-proof"] == true {
                page.push_str("<p>Asks a person for a fresh proof (<a href=\"#code-confirm_identity\">how</a>).</p>");
            }
            let body = schema(&operation["requestBody"]);
            if !body.is_empty() {
                let _ = write!(page, "<p>Takes <a href=\"#{body}\">{body}</a>.</p>");
            }
            for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
                let name = schema(answer);
                if status.starts_with('2') {
                    let _ = write!(page, "<p>Answers {status} <a href=\"#{name}\">{name}</a>.</p>");
                }
            }
        }
    }
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let name = escaped(name);
        let _ = write!(page, "<h2 id=\"{name}\">{name}</h2><p>{}</p><table>", text(&schema["description"]));
        for (field, of) in schema["properties"].as_object().into_iter().flatten() {
            let (field, about) = (escaped(field), text(&of["description"]));
            let _ = write!(page, "<tr><td><code>{field}</code><td>{about}");
        }
        page.push_str("</table>");
    }
    page.push_str(&codes::page());
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_the_one_in_the_repository() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api/openapi.json");
        let text = format!("{}\n", serde_json::to_string_pretty(&document()).unwrap());
        if std::env::var_os("POSTERN_WRITE_DOCUMENTS").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let stands = std::fs::read_to_string(path).unwrap_or_default();
        assert!(stands == text, "run POSTERN_WRITE_DOCUMENTS=1 cargo test --lib web::document");
    }

    #[test]
    fn every_operation_is_named_once_and_the_page_loads_nothing_from_elsewhere() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        let operations =
            document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
        let mut ids: Vec<&str> = operations.map(|operation| operation["operationId"].as_str().unwrap()).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert!(count > 50 && ids.len() == count, "{count} operations, {} names", ids.len());
        for (method, path, _) in FRESH {
            assert_eq!(document["paths"][path][method]["x-fresh-proof"], true, "{method} {path} is no operation");
        }
        let page = page(&document);
        for (path, operations) in document["paths"].as_object().unwrap() {
            let posts = operations.get("post").filter(|_| !OPEN.contains(&path.as_str()));
            for (operation, header) in [
                (posts, "IdempotencyKey"),
                (operations.get("patch"), "IfMatch"),
                (operations.get("put"), "IfMatch"),
                (operations.get("delete"), "IfMatch"),
            ] {
                let Some(operation) = operation else { continue };
                assert!(operation["parameters"].to_string().contains(header), "{path}: {header} is not told of");
            }
        }
        assert!(!page.contains("://") && !page.contains("<script") && page.contains("GET /api/v1/tenants/{tenant}"));
    }
}
