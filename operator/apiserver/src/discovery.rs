//! What is served, told to clients: groups, versions, resources, and as much OpenAPI as `kubectl` asks for.
//!
//! Never tells schemas: only which paths take which parameters.

use hyper::Response;
use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use crate::answer::{self, Answer};
use crate::failure::Failure;
use crate::paths::Route;
use crate::resource::{Registry, Resource};
use crate::server::Shared;

pub(crate) fn answer(shared: &Shared, route: &Route) -> Response<Answer> {
    let registry = shared.lock().registry.clone();
    match route {
        Route::Health => answer::bytes(200, "text/plain", Bytes::from_static(b"ok")),
        Route::Version => answer::json(
            200,
            &json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "clean",
                "buildDate": "2026-04-22T00:00:00Z", "goVersion": "", "compiler": "gc", "platform": "linux/amd64"}),
        ),
        Route::CoreVersions => answer::json(
            200,
            &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ),
        Route::Groups => {
            let groups: Vec<Value> = registry
                .groups()
                .iter()
                .map(|(name, versions)| group(name, versions))
                .collect();
            answer::json(
                200,
                &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}),
            )
        }
        Route::Group(name) => match registry.groups().get(name) {
            Some(versions) => {
                let mut value = group(name, versions);
                value["kind"] = "APIGroup".into();
                value["apiVersion"] = "v1".into();
                answer::json(200, &value)
            }
            None => answer::failure(&Failure::no_resource()),
        },
        Route::Resources { group, version } => resources(&registry, group, version),
        Route::OpenApi => open_api(&registry),
        Route::OpenApiOf { group, version } => open_api_of(&registry, group, version),
        Route::Objects(_) | Route::Unknown => answer::failure(&Failure::no_resource()),
    }
}

fn group(name: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v}))
        .collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
}

fn resources(registry: &Registry, group: &str, version: &str) -> Response<Answer> {
    let mut list = Vec::new();
    for resource in registry.iter().filter(|r| r.group == group && r.version == version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            "storageVersionHash": "",
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = resource.short_names.clone().into();
        }
        if !resource.categories.is_empty() {
            entry["categories"] = resource.categories.clone().into();
        }
        list.push(entry);
        let subresources = [
            ("status", resource.status),
            ("finalize", resource.plural == "namespaces"),
        ];
        for (name, _) in subresources.iter().filter(|(_, served)| *served) {
            list.push(
                json!({"name": format!("{}/{name}", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": resource.kind, "verbs": ["get", "patch", "update"]}),
            );
        }
    }
    if list.is_empty() {
        return answer::failure(&Failure::no_resource());
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    answer::json(
        200,
        &json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

fn root_of(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

fn open_api(registry: &Registry) -> Response<Answer> {
    let mut paths = Map::new();
    for resource in registry.iter() {
        let root = root_of(&resource.group, &resource.version);
        paths.insert(
            root.clone(),
            json!({"serverRelativeURL": format!("/openapi/v3/{root}")}),
        );
    }
    answer::json(200, &json!({"paths": paths}))
}

/// Just enough for `kubectl` to see that fields are validated and dry runs done by the server.
fn open_api_of(registry: &Registry, group: &str, version: &str) -> Response<Answer> {
    let mut paths = Map::new();
    for resource in registry.iter().filter(|r| r.group == group && r.version == version) {
        let place = if resource.namespaced {
            "namespaces/{namespace}/"
        } else {
            ""
        };
        let path = format!("/{}/{place}{}/{{name}}", root_of(group, version), resource.plural);
        paths.insert(path, path_item(resource));
    }
    if paths.is_empty() {
        return answer::failure(&Failure::no_resource());
    }
    let info = json!({"title": "Kubernetes", "version": "v1.36.0"});
    answer::json(
        200,
        &json!({"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}),
    )
}

fn path_item(resource: &Resource) -> Value {
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let parameters = [
        parameter("dryRun"),
        parameter("fieldManager"),
        parameter("fieldValidation"),
        parameter("force"),
    ];
    let responses = json!({"200": {"description": "OK"}});
    json!({
        "patch": {"parameters": parameters, "responses": responses, "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": kind},
        "put": {"parameters": &parameters[..3], "responses": responses, "x-kubernetes-action": "put",
            "x-kubernetes-group-version-kind": kind},
    })
}
