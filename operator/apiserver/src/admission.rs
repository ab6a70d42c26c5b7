//! ValidatingAdmissionPolicies.
//!
//! Never lets a policy that cannot be evaluated pass, unless its `failurePolicy` says so.

use std::sync::Arc;

use kube_cel::KubeCelExt as _;
use kube_cel::cel::{Context, Program, Value as CelValue};
use serde_json::{Value, json};

use crate::cel;
use crate::failure::{Cause, Failure};
use crate::store::{State, Stored};
use crate::writes::Request;

const POLICIES: &str = "validatingadmissionpolicies.admissionregistration.k8s.io";
const BINDINGS: &str = "validatingadmissionpolicybindings.admissionregistration.k8s.io";

/// Asks all policies that are bound.
///
/// # Errors
/// 422 or what the policy says: a validation does not hold.
pub(crate) fn review(
    state: &State,
    request: &Request<'_>,
    operation: &str,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Failure> {
    let Some(bindings) = state
        .tables
        .get(BINDINGS)
        .filter(|bindings| !bindings.objects.is_empty())
    else {
        return Ok(());
    };
    if request.resource.group == "admissionregistration.k8s.io" {
        // A policy must not lock everybody out of mending it.
        return Ok(());
    }
    for binding in bindings.objects.values() {
        let name = binding.value["spec"]["policyName"].as_str().unwrap_or("");
        let Some(policy) = state.find(POLICIES, "", name) else {
            continue;
        };
        let namespace = state.find("namespaces", "", request.namespace);
        let matched = [
            &policy.value["spec"]["matchConstraints"],
            &binding.value["spec"]["matchResources"],
        ]
        .into_iter()
        .all(|constraints| constrained(constraints, request, operation, object.or(old), namespace.as_deref()));
        if !matched || !denies(&binding.value) {
            continue;
        }
        let review = Review {
            state,
            request,
            operation,
            object,
            old,
            namespace: namespace.as_deref(),
        };
        review.ask(name, binding, &policy.value["spec"])?;
    }
    Ok(())
}

fn denies(binding: &Value) -> bool {
    binding["spec"]["validationActions"]
        .as_array()
        .is_some_and(|actions| actions.iter().any(|a| a == "Deny"))
}

fn names(list: &Value, wanted: &str) -> bool {
    list.as_array()
        .is_some_and(|list| list.iter().any(|name| name == "*" || name == wanted))
}

fn constrained(
    constraints: &Value,
    request: &Request<'_>,
    operation: &str,
    object: Option<&Value>,
    namespace: Option<&Stored>,
) -> bool {
    if constraints.is_null() {
        return true;
    }
    let resource = request.resource;
    let path = match request.subresource {
        "" => resource.plural.clone(),
        subresource => format!("{}/{subresource}", resource.plural),
    };
    let rule_fits = |rule: &Value| {
        let all = names(&rule["resources"], &path)
            && (request.subresource.is_empty()
                || !rule["resources"].as_array().is_some_and(|r| r.iter().any(|r| r == "*"))
                || rule["resources"]
                    .as_array()
                    .is_some_and(|r| r.iter().any(|r| *r == path)));
        let pattern = rule["resources"].as_array().is_some_and(|r| {
            let below = format!("{}/*", resource.plural);
            r.iter()
                .any(|r| *r == below || r == "*/*" || *r == format!("*/{}", request.subresource))
        });
        let scope = match rule["scope"].as_str() {
            Some("Namespaced") => resource.namespaced,
            Some("Cluster") => !resource.namespaced,
            Some(_) | None => true,
        };
        let named = rule["resourceNames"]
            .as_array()
            .is_none_or(|names| names.is_empty() || names.iter().any(|n| n == request.name));
        (all || pattern)
            && scope
            && named
            && names(&rule["apiGroups"], &resource.group)
            && names(&rule["apiVersions"], &resource.version)
            && names(&rule["operations"], operation)
    };
    let some = |field: &str| {
        constraints[field]
            .as_array()
            .is_some_and(|rules| rules.iter().any(rule_fits))
    };
    let included = constraints["resourceRules"].as_array().is_none_or(Vec::is_empty) || some("resourceRules");
    let labels = |value: &Value| value["metadata"]["labels"].clone();
    included
        && !some("excludeResourceRules")
        && selects(&constraints["objectSelector"], &object.map(labels).unwrap_or_default())
        && namespace.is_none_or(|namespace| selects(&constraints["namespaceSelector"], &labels(&namespace.value)))
}

/// A LabelSelector; an absent one selects everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    let exact = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    exact
        && selector["matchExpressions"]
            .as_array()
            .into_iter()
            .flatten()
            .all(|expression| {
                let value = labels.get(expression["key"].as_str().unwrap_or(""));
                let listed = expression["values"]
                    .as_array()
                    .is_some_and(|values| value.is_some_and(|v| values.contains(v)));
                match expression["operator"].as_str() {
                    Some("In") => listed,
                    Some("NotIn") => !listed,
                    Some("Exists") => value.is_some(),
                    Some("DoesNotExist") => value.is_none(),
                    Some(_) | None => false,
                }
            })
}

struct Review<'a> {
    state: &'a State,
    request: &'a Request<'a>,
    operation: &'a str,
    object: Option<&'a Value>,
    old: Option<&'a Value>,
    namespace: Option<&'a Stored>,
}

impl Review<'_> {
    fn ask(&self, policy: &str, binding: &Arc<Stored>, spec: &Value) -> Result<(), Failure> {
        let binding_name = binding.value["metadata"]["name"].as_str().unwrap_or("");
        let ignore = spec["failurePolicy"] == "Ignore";
        let mut context = match self.context(binding, spec) {
            Ok(context) => context,
            Err(_) if ignore => return Ok(()),
            Err(why) => return Err(self.denied(policy, binding_name, &why, None)),
        };
        for condition in spec["matchConditions"].as_array().into_iter().flatten() {
            match evaluate(&context, condition["expression"].as_str().unwrap_or("")) {
                Ok(CelValue::Bool(true)) => {}
                Ok(CelValue::Bool(false)) => return Ok(()),
                Ok(_) | Err(_) if ignore => return Ok(()),
                Ok(other) => return Err(self.denied(policy, binding_name, &format!("{other:?} is not a bool"), None)),
                Err(why) => return Err(self.denied(policy, binding_name, &why, None)),
            }
        }
        // Variables are lazy in a real server: one that fails fails what uses it. They may use those before them.
        let mut variables = kube_cel::cel::objects::Map { map: Arc::default() };
        for variable in spec["variables"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().unwrap_or("").to_owned();
            if let Ok(value) = evaluate(&context, variable["expression"].as_str().unwrap_or("")) {
                Arc::make_mut(&mut variables.map).insert(name.into(), value);
                let _always_fits = context.add_variable("variables", CelValue::Map(variables.clone()));
            }
        }
        for validation in spec["validations"].as_array().into_iter().flatten() {
            let expression = validation["expression"].as_str().unwrap_or("");
            let (why, broken) = match evaluate(&context, expression) {
                Ok(CelValue::Bool(true)) => continue,
                Ok(CelValue::Bool(false)) => (self.message(&context, validation), false),
                Ok(other) => (format!("expression '{expression}' resulted in {other:?}"), true),
                Err(why) => (format!("expression '{expression}' resulted in error: {why}"), true),
            };
            if broken && ignore {
                continue;
            }
            return Err(self.denied(policy, binding_name, &why, validation["reason"].as_str()));
        }
        Ok(())
    }

    fn message(&self, context: &Context<'_>, validation: &Value) -> String {
        if let Some(expression) = validation["messageExpression"].as_str()
            && let Ok(CelValue::String(message)) = evaluate(context, expression)
        {
            return message.to_string();
        }
        let expression = validation["expression"].as_str().unwrap_or("");
        let message = validation["message"].as_str().map(str::to_owned);
        message.unwrap_or_else(|| format!("failed expression: {expression}"))
    }

    fn denied(&self, policy: &str, binding: &str, why: &str, reason: Option<&str>) -> Failure {
        let resource = self.request.resource;
        let message = format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {why}");
        let (code, reason) = match reason {
            Some("Forbidden") => (403, "Forbidden"),
            Some("Unauthorized") => (401, "Unauthorized"),
            Some("RequestEntityTooLarge") => (413, "RequestEntityTooLarge"),
            Some(_) | None => (422, "Invalid"),
        };
        let mut failure = Failure::forbidden(&resource.group, &resource.plural, self.request.name, &message);
        (failure.code, failure.reason) = (code, reason);
        let cause = Cause {
            reason: "",
            message,
            field: String::new(),
        };
        failure.details["causes"] = json!([{"message": cause.message}]);
        failure
    }

    fn context(&self, binding: &Stored, spec: &Value) -> Result<Context<'static>, String> {
        let (request, resource) = (self.request, self.request.resource);
        let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
        let path = json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
        let user = &request.user;
        let name = self
            .object
            .or(self.old)
            .map_or(Value::Null, |object| object["metadata"]["name"].clone());
        let asked = json!({
            "operation": self.operation, "name": name, "namespace": request.namespace, "dryRun": request.dry_run,
            "kind": kind, "requestKind": kind, "resource": path, "requestResource": path,
            "subResource": request.subresource, "requestSubResource": request.subresource,
            "userInfo": {"username": user.username, "groups": user.groups, "extra": user.extra, "uid": ""},
        });
        let mut context = Context::default().with_all();
        let mut bind = |name: &str, value: &Value| -> Result<(), String> {
            context
                .add_variable(name, cel::value(value))
                .map_err(|error| error.to_string())
        };
        bind("object", self.object.unwrap_or(&Value::Null))?;
        bind("oldObject", self.old.unwrap_or(&Value::Null))?;
        bind("request", &asked)?;
        bind("variables", &json!({}))?;
        bind(
            "namespaceObject",
            &self.namespace.map_or(Value::Null, |namespace| namespace.value.clone()),
        )?;
        if !spec["paramKind"].is_null() {
            bind("params", &self.params(binding, &spec["paramKind"])?)?;
        }
        Ok(context)
    }

    fn params(&self, binding: &Stored, kind: &Value) -> Result<Value, String> {
        let reference = &binding.value["spec"]["paramRef"];
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let resource = self
            .state
            .registry
            .of_kind(&text(&kind["apiVersion"]), &text(&kind["kind"]));
        let resource = resource.ok_or("failed to find resource of paramKind")?;
        let namespace = match text(&reference["namespace"]) {
            namespace if namespace.is_empty() && resource.namespaced => self.request.namespace.to_owned(),
            namespace => namespace,
        };
        let found = self.state.find(&resource.table, &namespace, &text(&reference["name"]));
        match found {
            Some(stored) => Ok(stored.value.clone()),
            None if reference["parameterNotFoundAction"] == "Allow" => Ok(Value::Null),
            None => Err("no params found for policy binding with `Deny` parameterNotFoundAction".into()),
        }
    }
}

fn evaluate(context: &Context<'_>, expression: &str) -> Result<CelValue, String> {
    let program = Program::compile(expression).map_err(|error| format!("compilation failed: {error}"))?;
    program.execute(context).map_err(|error| error.to_string())
}

/// Expressions of a policy that do not compile: a real server refuses such a policy.
pub(crate) fn validate_policy(policy: &Value, causes: &mut Vec<Cause>) {
    for field in ["validations", "variables", "matchConditions"] {
        for (i, item) in policy["spec"][field].as_array().into_iter().flatten().enumerate() {
            let expression = item["expression"].as_str().unwrap_or("");
            let path = format!("spec.{field}[{i}].expression");
            if expression.trim().is_empty() {
                causes.push(Cause::required(path, ""));
            } else if let Err(error) = Program::compile(expression) {
                causes.push(Cause::invalid(
                    path,
                    &expression.into(),
                    format!("compilation failed: {error}"),
                ));
            }
        }
    }
}
