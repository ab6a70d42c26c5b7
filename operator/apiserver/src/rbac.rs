//! Roles and ClusterRoles.
//!
//! Never more than rules about resources: non-resource URLs are open, and `system:masters` may do everything.

use serde_json::Value;

use crate::failure::Failure;
use crate::identity::Identity;
use crate::paths::Target;
use crate::resource::Resource;
use crate::store::State;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Whether `user` may; `apply` is `patch` in the words of roles.
///
/// # Errors
/// 403 in a real server's words.
pub(crate) fn authorize(
    state: &State,
    user: &Identity,
    verb: &str,
    resource: &Resource,
    target: &Target,
) -> Result<(), Failure> {
    let verb = if verb == "apply" { "patch" } else { verb };
    if user.is_master() || allowed(state, user, verb, target) {
        return Ok(());
    }
    let path = path(target);
    let place = if target.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", target.namespace)
    };
    let why = format!(
        "User \"{}\" cannot {verb} resource \"{path}\" in API group \"{}\" {place}",
        user.username, resource.group
    );
    Err(Failure::forbidden(&resource.group, &resource.plural, &target.name, why))
}

fn path(target: &Target) -> String {
    if target.subresource.is_empty() {
        target.plural.clone()
    } else {
        format!("{}/{}", target.plural, target.subresource)
    }
}

fn allowed(state: &State, user: &Identity, verb: &str, target: &Target) -> bool {
    let mut bindings: Vec<(&str, &Value)> = Vec::new();
    let objects = |kind: &str| state.tables.get(&format!("{kind}.{GROUP}")).map(|table| &table.objects);
    for (_, stored) in objects("clusterrolebindings").into_iter().flatten() {
        bindings.push(("", &stored.value));
    }
    for (key, stored) in objects("rolebindings").into_iter().flatten() {
        if key.0 == target.namespace && !target.namespace.is_empty() {
            bindings.push((&key.0, &stored.value));
        }
    }
    bindings
        .into_iter()
        .filter(|(_, binding)| binds(binding, user))
        .any(|(namespace, binding)| {
            let reference = &binding["roleRef"];
            let name = reference["name"].as_str().unwrap_or("");
            let role = match reference["kind"].as_str() {
                Some("ClusterRole") => state.find(&format!("clusterroles.{GROUP}"), "", name),
                Some("Role") => state.find(&format!("roles.{GROUP}"), namespace, name),
                Some(_) | None => None,
            };
            role.is_some_and(|role| {
                role.value["rules"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .any(|rule| permits(rule, verb, target))
            })
        })
}

fn binds(binding: &Value, user: &Identity) -> bool {
    binding["subjects"].as_array().into_iter().flatten().any(|subject| {
        let text = |field: &str| subject[field].as_str().unwrap_or("");
        match text("kind") {
            "User" => text("name") == user.username,
            "Group" => user.groups.iter().any(|group| group == text("name")),
            "ServiceAccount" => {
                user.username == format!("system:serviceaccount:{}:{}", text("namespace"), text("name"))
            }
            _other => false,
        }
    })
}

fn permits(rule: &Value, verb: &str, target: &Target) -> bool {
    let has = |field: &str, wanted: &[&str]| {
        let list = rule[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        list.into_iter().any(|name| name == "*" || wanted.contains(&name))
    };
    let path = path(target);
    let any_with = format!("*/{}", target.subresource);
    let names = rule["resourceNames"].as_array().map(Vec::as_slice).unwrap_or_default();
    has("verbs", &[verb])
        && has("apiGroups", &[&target.group])
        && has("resources", &[&path, &any_with])
        && (names.is_empty() || names.iter().any(|name| *name == target.name))
}
