//! What each role may, as one table: the code asks it and the page in the documentation is made of it.

use super::{Action, Resource, Role};
use crate::mail::TenantId;

/// Every resource, in the order of the page.
pub const RESOURCES: &[Resource] = &[
    Resource::Instance,
    Resource::Tenant,
    Resource::Users,
    Resource::Keys,
    Resource::SmtpAccounts,
    Resource::Domains,
    Resource::Suppressions,
    Resource::Queue,
    Resource::Audit,
    Resource::Messages,
    Resource::Webhooks,
    Resource::Statistics,
];

/// Names of the roles, most powerful first, each with what it is for.
pub const ROLES: &[(&str, &str)] = &[
    ("instance-admin", "runs the instance and every tenant"),
    ("owner", "runs one tenant, its people included"),
    ("admin", "runs one tenant, except for its owners"),
    ("developer", "sets up sending"),
    ("analyst", "reads what was sent and how it went"),
    ("support", "reads one tenant and changes nothing"),
];

pub(super) fn reach(role: Role, resource: Resource) -> Option<Action> {
    use Action::{Read, Write};
    let [owner, admin, developer, analyst, support] = match resource {
        Resource::Instance => [None; 5],
        Resource::Tenant => [Some(Write), Some(Write), Some(Read), Some(Read), Some(Read)],
        Resource::Users => [Some(Write), Some(Write), None, None, Some(Read)],
        Resource::Keys => [Some(Write), Some(Write), Some(Write), None, Some(Read)],
        Resource::SmtpAccounts
        | Resource::Domains
        | Resource::Suppressions
        | Resource::Queue
        | Resource::Messages
        | Resource::Webhooks => [Some(Write), Some(Write), Some(Write), Some(Read), Some(Read)],
        Resource::Statistics => [Some(Read); 5],
        Resource::Audit => [Some(Read), Some(Read), None, None, Some(Read)],
    };
    match role {
        Role::InstanceAdmin => Some(Write),
        Role::TenantOwner(_) => owner,
        Role::TenantAdmin(_) => admin,
        Role::Developer(_) => developer,
        Role::Analyst(_) => analyst,
        Role::Support(_) => support,
    }
}

/// The page of the documentation.
pub fn page() -> String {
    let mut text = String::from(
        "# Permissions\n\nMade from the code by a test; do not edit.\n\n\
         A role says what a person or key may at most; the scopes of a key (`resource:action`) and a person's SMTP \
         accounts narrow that further.\n`write` includes `read`. What belongs to another tenant answers 404, as if it did \
         not exist.\n\n| Role | For |\n| --- | --- |\n",
    );
    for (role, purpose) in ROLES {
        text.push_str(&format!("| `{role}` | {purpose} |\n"));
    }
    text.push_str("\n| Resource |");
    ROLES.iter().for_each(|(role, _)| text.push_str(&format!(" {role} |")));
    text.push_str("\n| --- |");
    ROLES.iter().for_each(|_| text.push_str(" --- |"));
    text.push('\n');
    for resource in RESOURCES {
        text.push_str(&format!("| `{}` |", resource.word()));
        for (role, _) in ROLES {
            let tenant = (*role != "instance-admin").then_some(TenantId(0));
            let reach = Role::called(role, tenant).and_then(|role| role.reach(*resource));
            text.push_str(&format!(" {} |", reach.map_or("-", Action::word)));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_the_one_in_the_documentation() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api/permissions.md");
        if std::env::var_os("POSTERN_WRITE_DOCUMENTS").is_some() {
            std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
            std::fs::write(path, page()).unwrap();
        }
        let stands = std::fs::read_to_string(path).unwrap_or_default();
        assert!(stands == page(), "run POSTERN_WRITE_DOCUMENTS=1 cargo test --lib access::");
    }

    #[test]
    fn every_role_of_the_page_exists_and_a_lower_one_never_reaches_further() {
        for pair in ROLES.windows(2) {
            let role = |name: &str| Role::called(name, (name != "instance-admin").then_some(TenantId(1))).unwrap();
            let (upper, lower) = (role(pair[0].0), role(pair[1].0));
            let is_support = lower.word() == "support";
            for resource in RESOURCES.iter().filter(|_| !is_support) {
                assert!(lower.reach(*resource) <= upper.reach(*resource), "{lower:?} {resource:?}");
            }
        }
    }
}
