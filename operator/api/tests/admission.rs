//! The admission policies of deploy/manifests, asked about everybody and everything: tests/admission.yaml says who may.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by a panic")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
};

use kube_cel::{
    KubeCelExt as _,
    cel::{Context, ExecutionError, Program, Value as Cel, extractors::This},
};
use serde_json::{Value, json};

#[derive(serde::Deserialize)]
struct Table {
    users: BTreeMap<String, User>,
    allowed: Vec<Allowed>,
}

#[derive(serde::Deserialize)]
struct User {
    username: String,
    #[serde(default)]
    groups: Vec<String>,
    node: Option<String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    resources: Vec<String>,
    name: String,
    create: Vec<String>,
    update_spec: Vec<String>,
    update_metadata: Vec<String>,
    delete: Vec<String>,
}

/// All policies and bindings.
fn policies() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/manifests/admission.yaml");
    let text = fs::read_to_string(path).unwrap();
    let documents = serde_norway::Deserializer::from_str(&text);
    documents
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect()
}

fn policy<'a>(all: &'a [Value], resource: &str) -> &'a Value {
    let mut fitting = all.iter().filter(|policy| {
        let rules = &policy["spec"]["matchConstraints"]["resourceRules"][0]["resources"];
        policy["kind"] == "ValidatingAdmissionPolicy" && rules.as_array().unwrap().contains(&json!(resource))
    });
    let found = fitting.next().unwrap_or_else(|| panic!("no policy for {resource}"));
    assert!(fitting.next().is_none(), "two policies for {resource}");
    found
}

/// Whether a policy lets a request pass. Variables that cannot be computed are absent, as for a server that computes
/// them when asked.
fn passes(policy: &Value, user: &User, may_everything: bool, operation: &str, object: &Value, old: &Value) -> bool {
    let mut context = Context::default().with_all();
    let mut info = json!({"username": user.username, "groups": user.groups});
    if let Some(node) = &user.node {
        info["extra"] = json!({"authentication.kubernetes.io/node-name": [node]});
    }
    context
        .add_variable("request", json!({"operation": operation, "userInfo": info}))
        .unwrap();
    context.add_variable("object", object).unwrap();
    context.add_variable("oldObject", old).unwrap();
    context.add_variable("authorizer", "authorizer").unwrap();
    for step in ["group", "resource", "check"] {
        context.add_function(
            step,
            |This(this): This<Cel>, what: std::sync::Arc<String>| -> Result<Cel, ExecutionError> {
                assert_eq!(*what, "*", "only who may do everything is asked for");
                Ok(this)
            },
        );
    }
    context.add_function("allowed", move |This(_): This<Cel>| -> Result<Cel, ExecutionError> {
        Ok(may_everything.into())
    });
    let mut variables = HashMap::new();
    for variable in policy["spec"]["variables"].as_array().unwrap() {
        let program = Program::compile(variable["expression"].as_str().unwrap()).unwrap();
        context.add_variable_from_value("variables", variables.clone());
        if let Ok(value) = program.execute(&context) {
            variables.insert(variable["name"].as_str().unwrap().to_owned(), value);
        }
    }
    context.add_variable_from_value("variables", variables);
    let validations = policy["spec"]["validations"].as_array().unwrap();
    assert_eq!(validations.len(), 1);
    let program = Program::compile(validations[0]["expression"].as_str().unwrap()).unwrap();
    match program.execute(&context).unwrap() {
        Cel::Bool(passes) => passes,
        other => panic!("{other:?} is no answer"),
    }
}

#[test]
fn everybody_may_what_the_table_says_and_nothing_else() {
    let Table { users, allowed } = serde_norway::from_str(include_str!("admission.yaml")).unwrap();
    let all = policies();
    let mut asked = 0;
    for rule in &allowed {
        let object = json!({"metadata": {"name": rule.name}, "spec": {"is": 1}});
        let changed = json!({"metadata": {"name": rule.name}, "spec": {"is": 2}});
        let operations = [
            ("CREATE", &rule.create, &object, &Value::Null),
            ("UPDATE", &rule.update_spec, &changed, &object),
            ("UPDATE", &rule.update_metadata, &object, &object),
            ("DELETE", &rule.delete, &Value::Null, &object),
        ];
        for resource in &rule.resources {
            for (operation, may, new, old) in operations {
                for (who, user) in &users {
                    let passes = passes(policy(&all, resource), user, who == "admin", operation, new, old);
                    let change = if new == old { "metadata" } else { "all" };
                    assert_eq!(
                        passes,
                        may.contains(who),
                        "{who}: {operation} ({change}) {resource} {}",
                        rule.name
                    );
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 300, "{asked}");
}

#[test]
fn every_policy_is_bound_fails_closed_and_says_no() {
    let all = policies();
    let bound: Vec<_> = all
        .iter()
        .filter(|it| it["kind"] == "ValidatingAdmissionPolicyBinding")
        .collect();
    let policies: Vec<_> = all
        .iter()
        .filter(|it| it["kind"] == "ValidatingAdmissionPolicy")
        .collect();
    assert_eq!(policies.len(), 4);
    for policy in policies {
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
        assert_eq!(policy["spec"]["validations"][0]["reason"], "Forbidden");
        let name = &policy["metadata"]["name"];
        let binding = bound
            .iter()
            .find(|it| it["spec"]["policyName"] == *name)
            .expect("a binding");
        assert_eq!(binding["spec"]["validationActions"], json!(["Deny"]));
        assert!(
            binding["spec"].get("matchResources").is_none(),
            "{name}: bound to everything that it matches"
        );
    }
}
