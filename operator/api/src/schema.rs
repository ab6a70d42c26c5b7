//! What the derived schemas lack, for an API server and for people who run `kubectl explain`.
//!
//! Never adds a rule to a type of ours: those stand beside their fields. Here is what all schemas have in common, and
//! the bounds of the two foreign types, conditions and label selectors.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use schemars::{Schema, SchemaGenerator, json_schema};

/// Most entries of [`crate::AddressPoolSpec::addresses`].
pub const MAX_POOL_ADDRESSES: usize = 64;
/// Most labels and most expressions of a label selector of ours.
const MAX_SELECTOR_TERMS: i64 = 32;
/// Most values of an expression of a label selector of ours.
const MAX_SELECTOR_VALUES: i64 = 64;

/// The schema of an address pool's addresses: rules for each entry, so that the API server names the one that is wrong.
pub(crate) fn pool_addresses(_: &mut SchemaGenerator) -> Schema {
    let entry = |rule: &str, message: &str| serde_json::json!({"rule": rule, "message": message});
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_POOL_ADDRESSES,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "minLength": 3,
            "maxLength": 87,
            "x-kubernetes-validations": [
                entry(
                    "isCIDR(self) || (self.split('-').size() == 2 && self.split('-').all(a, isIP(a.trim())) && \
                     ip(self.split('-')[0].trim()).family() == ip(self.split('-')[1].trim()).family())",
                    "must be a CIDR block or a range FIRST-LAST of one family",
                ),
                entry(
                    "!isCIDR(self) || cidr(self) == cidr(self).masked()",
                    "must be the network's own address: bits after the prefix are set",
                ),
                // CEL has no order of addresses. Those of IPv4 are compared as numbers; those of IPv6 by the operator.
                entry(
                    "!self.matches('^ *[0-9]+(\\\\.[0-9]+){3} *- *[0-9]+(\\\\.[0-9]+){3} *$') || \
                     [[self.split('-')[0].trim().split('.').map(o, int(o)), \
                     self.split('-')[1].trim().split('.').map(o, int(o))]].all(r, \
                     r[0][0] * 16777216 + r[0][1] * 65536 + r[0][2] * 256 + r[0][3] <= \
                     r[1][0] * 16777216 + r[1][1] * 65536 + r[1][2] * 256 + r[1][3])",
                    "the first address of a range must not be after its last",
                ),
            ],
        },
    })
}

/// The rules of `tableSlots` where `x_kube` does not reach: in a variant of an enum.
pub(crate) fn growing_power_of_two() -> serde_json::Value {
    serde_json::json!([
        {
            "rule": "self in [256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]",
            "message": "must be a power of two",
        },
        { "rule": "self >= oldSelf", "message": "lookup tables only grow" },
    ])
}

/// What the name of an object must be: the derive has no place for rules of whole objects (without the `kube` crate).
pub(crate) struct NameRule {
    /// In CEL.
    pub(crate) rule: &'static str,
    /// For people.
    pub(crate) message: &'static str,
}

/// Completes the schemas of a definition.
pub(crate) fn finish(mut crd: CustomResourceDefinition, named: Option<&NameRule>) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) {
            schema.title = None;
            complete(schema);
            if let Some(NameRule { rule, message }) = named {
                schema
                    .x_kubernetes_validations
                    .get_or_insert_default()
                    .push(ValidationRule {
                        rule: (*rule).into(),
                        message: Some((*message).into()),
                        ..ValidationRule::default()
                    });
            }
        }
    }
    crd
}

fn complete(schema: &mut JSONSchemaProps) {
    // An absent field and a null one are the same here: nulls of fields that are not nullable are pruned before rules
    // run.
    schema.nullable = None;
    schema.description = schema
        .description
        .take()
        .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    integer_format(schema);
    if is_condition(schema) {
        bound_condition(schema);
    }
    if is_selector(schema) {
        bound_selector(schema);
    }
    for property in schema
        .properties
        .iter_mut()
        .flat_map(|properties| properties.values_mut())
    {
        complete(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        complete(items);
        if is_condition(items) {
            schema.x_kubernetes_list_type = Some("map".into());
            schema.x_kubernetes_list_map_keys = Some(vec!["type".into()]);
        }
    }
}

/// API servers know formats of signed integers only, and warn about others.
fn integer_format(schema: &mut JSONSchemaProps) {
    let (format, most) = match schema.format.as_deref() {
        Some("uint8") => ("int32", f64::from(u8::MAX)),
        Some("uint16") => ("int32", f64::from(u16::MAX)),
        Some("uint32") => ("int64", f64::from(u32::MAX)),
        _ => return,
    };
    schema.format = Some(format.into());
    schema.maximum.get_or_insert(most);
    schema.minimum.get_or_insert(0.0);
}

fn property<'a>(schema: &'a mut JSONSchemaProps, name: &str) -> Option<&'a mut JSONSchemaProps> {
    schema.properties.as_mut()?.get_mut(name)
}

fn has_properties(schema: &JSONSchemaProps, names: &[&str]) -> bool {
    schema
        .properties
        .as_ref()
        .is_some_and(|known| names.iter().all(|name| known.contains_key(*name)))
}

fn is_condition(schema: &JSONSchemaProps) -> bool {
    has_properties(schema, &["lastTransitionTime", "message", "reason", "status", "type"])
}

fn is_selector(schema: &JSONSchemaProps) -> bool {
    has_properties(schema, &["matchExpressions", "matchLabels"])
}

/// The bounds that Kubernetes itself has for `metav1.Condition`.
fn bound_condition(schema: &mut JSONSchemaProps) {
    if let Some(kind) = property(schema, "type") {
        kind.max_length = Some(316);
        kind.pattern = Some(
            "^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?\
             (([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
                .into(),
        );
    }
    if let Some(status) = property(schema, "status") {
        status.enum_ = Some(["True", "False", "Unknown"].map(|value| JSON(value.into())).into());
    }
    if let Some(reason) = property(schema, "reason") {
        reason.min_length = Some(1);
        reason.max_length = Some(1024);
        reason.pattern = Some("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$".into());
    }
    if let Some(message) = property(schema, "message") {
        message.max_length = Some(32_768);
    }
    if let Some(generation) = property(schema, "observedGeneration") {
        generation.minimum = Some(0.0);
    }
}

/// Kubernetes bounds keys and values, but neither how many there are nor that an operator has the values it needs.
fn bound_selector(schema: &mut JSONSchemaProps) {
    if let Some(labels) = property(schema, "matchLabels") {
        labels.max_properties = Some(MAX_SELECTOR_TERMS);
        if let Some(JSONSchemaPropsOrBool::Schema(value)) = &mut labels.additional_properties {
            value.max_length = Some(63);
        }
    }
    let Some(expressions) = property(schema, "matchExpressions") else {
        return;
    };
    expressions.max_items = Some(MAX_SELECTOR_TERMS);
    let Some(JSONSchemaPropsOrArray::Schema(expression)) = &mut expressions.items else {
        return;
    };
    expression.x_kubernetes_validations = Some(vec![ValidationRule {
        rule: "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : \
               !has(self.values) || self.values.size() == 0"
            .into(),
        message: Some("In and NotIn need values; Exists and DoesNotExist take none".into()),
        ..ValidationRule::default()
    }]);
    if let Some(key) = property(expression, "key") {
        key.min_length = Some(1);
        key.max_length = Some(317);
    }
    if let Some(operator) = property(expression, "operator") {
        operator.enum_ = Some(
            ["In", "NotIn", "Exists", "DoesNotExist"]
                .map(|value| JSON(value.into()))
                .into(),
        );
    }
    if let Some(values) = property(expression, "values") {
        values.max_items = Some(MAX_SELECTOR_VALUES);
        if let Some(JSONSchemaPropsOrArray::Schema(value)) = &mut values.items {
            value.max_length = Some(63);
        }
    }
}
