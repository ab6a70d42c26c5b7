//! CEL rules of custom resources.
//!
//! Never runs a rule that did not compile: a definition with such a rule is refused.

use std::fmt;
use std::sync::Arc;

use kube_cel::cel::Value as CelValue;
use kube_cel::cel::objects::Map;
use kube_cel::{CompiledSchema, RootContext, Validator, compile_schema};
use serde_json::Value;

use crate::failure::Cause;

/// The compiled rules of one schema.
pub(crate) struct Rules {
    compiled: CompiledSchema,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rules")
    }
}

impl Rules {
    pub(crate) fn compile(schema: &Value) -> Self {
        Self {
            compiled: compile_schema(schema),
        }
    }

    /// What rules do not hold for `object`, which replaces `live`.
    pub(crate) fn check(&self, live: Option<&Value>, object: &Value, causes: &mut Vec<Cause>) {
        let text = |field: &str| object[field].as_str().unwrap_or("").to_owned();
        let api_version = text("apiVersion");
        let group = api_version.split_once('/').map_or("", |(group, _)| group).to_owned();
        let root = RootContext {
            api_group: group,
            api_version,
            kind: text("kind"),
        };
        let checked = Validator::new().validate_compiled_with_context(&self.compiled, object, live, Some(&root));
        for error in checked.err().into_iter().flatten() {
            causes.push(Cause::rule(
                &error.field_path,
                object,
                &error.message,
                error.reason.as_deref(),
            ));
        }
    }
}

/// JSON in CEL's terms: whole numbers are ints, as in an API server.
pub(crate) fn value(json: &Value) -> CelValue {
    match json {
        Value::Null => CelValue::Null,
        Value::Bool(flag) => CelValue::Bool(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => CelValue::Int(int),
            (None, Some(uint)) => CelValue::UInt(uint),
            (None, None) => CelValue::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => CelValue::String(Arc::new(text.clone())),
        Value::Array(items) => CelValue::List(Arc::new(items.iter().map(value).collect())),
        Value::Object(map) => {
            let map = map
                .iter()
                .map(|(key, child)| (key.clone().into(), value(child)))
                .collect();
            CelValue::Map(Map { map: Arc::new(map) })
        }
    }
}
