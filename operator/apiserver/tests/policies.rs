//! Custom resources and admission: what is refused, and in which words.

use apiserver::{ApiServer, Identity};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, Config};
use operator_api::AddressPool;
use serde_json::{Value, json};

fn pool(spec: Value) -> Value {
    json!({"apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "p"}, "spec": spec})
}

#[test]
fn a_pool_is_held_to_its_schema_and_its_rules() {
    let server = ApiServer::start();
    for (spec, field) in [
        (json!({}), "spec.addresses"),
        (json!({"addresses": []}), "spec.addresses"),
        (json!({"addresses": "192.0.2.0/24"}), "spec.addresses"),
        (json!({"addresses": ["192.0.2.0/24"], "priority": -1}), "spec.priority"),
        (json!({"addresses": ["192.0.2.0/33"]}), "spec.addresses"),
        (json!({"addresses": ["192.0.2.1-2001:db8::1"]}), "spec.addresses"),
    ] {
        let refused = server.create(pool(spec.clone())).unwrap_err();
        assert_eq!((refused.code, refused.reason), (422, "Invalid"), "{spec}: {refused}");
        assert!(
            refused.details["causes"][0]["field"]
                .as_str()
                .unwrap()
                .starts_with(field),
            "{spec}: {refused}"
        );
    }
    server
        .create(pool(json!({"addresses": ["192.0.2.0/24", "2001:db8::1-2001:db8::9"]})))
        .unwrap();
    let unknown = server
        .merge("addresspools", "", "p", "", json!({"spec": {"adresses": []}}))
        .unwrap_err();
    assert_eq!(unknown.code, 400, "strict: {unknown}");
    assert!(unknown.message.contains("unknown field \"spec.adresses\""), "{unknown}");
}

#[test]
fn the_specs_of_our_kinds_that_may_not_change_do_not() {
    let server = ApiServer::start();
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "as.x.dev"}, "spec": {"group": "x.dev", "scope": "Cluster",
        "names": {"plural": "as", "kind": "A"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties":
            {"n": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "only grows"}]}}}}}}}]}});
    server.create(definition).unwrap();
    let object = |n: i64| json!({"apiVersion": "x.dev/v1", "kind": "A", "metadata": {"name": "a"}, "spec": {"n": n}});
    // A definition is established a moment later.
    let made = (0..500).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        server.create(object(5)).ok()
    });
    assert!(made.is_some());
    assert_eq!(server.apply(object(6), "m").unwrap()["spec"]["n"], 6);
    let refused = server.apply(object(4), "m").unwrap_err();
    assert_eq!(
        refused.message,
        "A.x.dev \"a\" is invalid: spec.n: Invalid value: 4: only grows"
    );
}

#[tokio::test]
async fn a_policy_lets_only_its_operator_write() {
    let server = ApiServer::start();
    let operator = Identity::service_account("vipline-system", "vipline-operator");
    server.identity("operator", operator);
    server.identity(
        "node",
        Identity::service_account("vipline-system", "vipline-lb").on_node("lb-1"),
    );
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "only"}, "spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": ["vipline.dev"], "apiVersions": ["*"],
                "operations": ["CREATE", "UPDATE", "DELETE"], "resources": ["addresspools"]}]},
            "variables": [{"name": "who", "expression": "request.userInfo.username"},
                {"name": "node", "expression": "'authentication.kubernetes.io/node-name' in request.userInfo.extra ? request.userInfo.extra['authentication.kubernetes.io/node-name'][0] : ''"}],
            "validations": [{"expression": "variables.who == 'system:serviceaccount:vipline-system:vipline-operator'",
                "message": "only the operator", "reason": "Forbidden"},
                {"expression": "request.operation == 'DELETE' || object.spec.autoAssign == true"}]}});
    server.create(policy).unwrap();
    let client = |token: &str| {
        let mut config = Config::new(server.url().parse().unwrap());
        config.auth_info.token = Some(token.to_owned().into());
        Client::try_from(config).unwrap()
    };
    let made: AddressPool = serde_json::from_value(pool(json!({"addresses": ["192.0.2.0/24"]}))).unwrap();
    let by_node: Api<AddressPool> = Api::all(client("node"));
    let by_operator: Api<AddressPool> = Api::all(client("operator"));
    by_node.create(&PostParams::default(), &made).await.unwrap();
    by_node.delete("p", &DeleteParams::default()).await.unwrap();
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "only"}, "spec": {"policyName": "only", "validationActions": ["Deny"]}});
    server.create(binding).unwrap();
    let refused = by_node.create(&PostParams::default(), &made).await.unwrap_err();
    match refused {
        kube::Error::Api(status) => {
            assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"));
            assert!(
                status.message.ends_with("denied request: only the operator"),
                "{}",
                status.message
            );
        }
        other => panic!("{other:?}"),
    }
    by_operator.create(&PostParams::default(), &made).await.unwrap();
    let off = Patch::Merge(json!({"spec": {"autoAssign": false}}));
    assert!(by_operator.patch("p", &PatchParams::default(), &off).await.is_err());
    assert!(by_node.delete("p", &DeleteParams::default()).await.is_err());
    by_operator.delete("p", &DeleteParams::default()).await.unwrap();
    let stranger: Api<ConfigMap> = Api::default_namespaced(client("stranger"));
    assert!(matches!(stranger.get("x").await, Err(kube::Error::Api(status)) if status.code == 401));
}

#[tokio::test]
async fn roles_allow_what_they_name_and_nothing_else() {
    let server = ApiServer::builder().rbac().start();
    server.identity("sa", Identity::service_account("default", "reader"));
    let mut config = Config::new(server.url().parse().unwrap());
    config.auth_info.token = Some("sa".to_owned().into());
    let client = Client::try_from(config).unwrap();
    let here: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let there: Api<ConfigMap> = Api::namespaced(client, "kube-system");
    let code = |error: kube::Error| match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(here.list(&Default::default()).await.unwrap_err()), 403);
    let rbac = "rbac.authorization.k8s.io";
    server
        .create(json!({"apiVersion": format!("{rbac}/v1"), "kind": "Role",
        "metadata": {"name": "r", "namespace": "default"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "patch"]},
            {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"], "resourceNames": ["one"]}]}))
        .unwrap();
    server
        .create(json!({"apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
        "metadata": {"name": "r", "namespace": "default"},
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}]}))
        .unwrap();
    here.list(&Default::default()).await.unwrap();
    assert_eq!(code(there.list(&Default::default()).await.unwrap_err()), 403);
    assert_eq!(code(here.get("one").await.unwrap_err()), 404, "allowed, and not there");
    assert_eq!(code(here.get("two").await.unwrap_err()), 403);
    let apply = Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}}));
    // Who applies what is not there creates it, which takes another verb.
    assert_eq!(
        code(here.patch("one", &PatchParams::apply("m"), &apply).await.unwrap_err()),
        403
    );
    server
        .create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "namespace": "default"}}))
        .unwrap();
    here.patch("one", &PatchParams::apply("m"), &apply).await.unwrap();
    assert_eq!(
        code(here.delete("one", &DeleteParams::default()).await.unwrap_err()),
        403
    );
}
