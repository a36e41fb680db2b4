//! Who may do what: an `Actor` is passed first to every administrative method, which calls
//! [`Actor::require`] before anything else. Pure: no records, no clock.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::mail::TenantId;

/// A role of a person or key. The full matrix comes with users; the instance roles come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Runs the instance: everything, every tenant.
    InstanceAdmin,
    /// Runs one tenant.
    TenantOwner(TenantId),
    /// May read one tenant.
    TenantReader(TenantId),
}

/// What an act needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Instance-wide changes: virtual IPs, tenants, routes, every queue.
    ManageInstance,
    /// Changes within one tenant.
    ManageTenant(TenantId),
    /// Reading within one tenant.
    ReadTenant(TenantId),
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Shown in the audit trail: `uid 0 by local socket`, `system: daily verification`.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

/// The actor may not do that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{actor} may not do this")]
pub struct Forbidden {
    /// Who asked.
    pub actor: String,
}

impl Actor {
    /// The daemon itself, for `reason`.
    pub fn system(reason: &str) -> Self {
        Self { name: format!("system: {reason}"), role: Role::InstanceAdmin }
    }

    /// A peer on the local socket, which its credentials made an instance admin.
    pub fn local(uid: u32) -> Self {
        Self { name: format!("uid {uid} by local socket"), role: Role::InstanceAdmin }
    }

    /// Whether this actor may do what `permission` names.
    pub fn require(&self, permission: Permission) -> Result<(), Forbidden> {
        let allowed = match (self.role, permission) {
            (Role::InstanceAdmin, _) => true,
            (Role::TenantOwner(own), Permission::ManageTenant(asked) | Permission::ReadTenant(asked))
            | (Role::TenantReader(own), Permission::ReadTenant(asked)) => own == asked,
            _ => false,
        };
        if allowed { Ok(()) } else { Err(Forbidden { actor: self.name.clone() }) }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_people_reach_their_own_tenant_only() {
        let (own, other) = (TenantId(1), TenantId(2));
        let owner = Actor { name: "o".into(), role: Role::TenantOwner(own) };
        assert!(owner.require(Permission::ManageTenant(own)).is_ok());
        assert!(owner.require(Permission::ManageTenant(other)).is_err());
        assert!(owner.require(Permission::ManageInstance).is_err());
        let reader = Actor { name: "r".into(), role: Role::TenantReader(own) };
        assert!(reader.require(Permission::ReadTenant(own)).is_ok());
        assert!(reader.require(Permission::ManageTenant(own)).is_err());
        assert!(Actor::system("test").require(Permission::ManageInstance).is_ok());
    }
}
