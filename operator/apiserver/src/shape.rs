//! Which lists and maps are merged by key, which are sets, and which are one value.
//!
//! Never holds values. What a shape does not say is deduced: maps are merged, lists are one value.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::Value;

/// How the fields below a place are owned.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shape {
    pub(crate) rule: Rule,
    fields: BTreeMap<String, Shape>,
    /// Of items, and of values whose key is not in `fields`.
    every: Option<Box<Shape>>,
}

/// How one list or map is owned.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Rule {
    /// Maps: key by key; lists: as one value.
    #[default]
    Deduced,
    /// As one value.
    Atomic,
    /// A list whose items are owned one by one.
    Set,
    /// A list whose items are owned field by field and told apart by keys (with their defaults).
    Keyed(Vec<(String, Option<Value>)>),
}

static DEDUCED: Shape = Shape {
    rule: Rule::Deduced,
    fields: BTreeMap::new(),
    every: None,
};

impl Shape {
    pub(crate) fn field(&self, name: &str) -> &Self {
        self.fields.get(name).or(self.every.as_deref()).unwrap_or(&DEDUCED)
    }

    pub(crate) fn item(&self) -> &Self {
        self.every.as_deref().unwrap_or(&DEDUCED)
    }

    /// Element of a path for an item of a list that is not one value.
    pub(crate) fn element(&self, item: &Value) -> String {
        match &self.rule {
            Rule::Keyed(keys) => {
                let mut key = serde_json::Map::new();
                for (name, default) in keys {
                    if let Some(value) = item.get(name).filter(|v| !v.is_null()).or(default.as_ref()) {
                        key.insert(name.clone(), value.clone());
                    }
                }
                format!("k:{}", Value::Object(key))
            }
            Rule::Set | Rule::Deduced | Rule::Atomic => format!("v:{item}"),
        }
    }

    /// Of objects with a schema of their own, metadata included.
    pub(crate) fn of_schema(schema: &Value) -> Self {
        let mut shape = Self::from_schema(schema);
        shape.fields.insert("metadata".into(), parse(METADATA));
        shape
    }

    fn from_schema(schema: &Value) -> Self {
        let text = |name: &str| schema[name].as_str().unwrap_or("");
        let rule = match (text("x-kubernetes-list-type"), text("x-kubernetes-map-type")) {
            ("set", _) => Rule::Set,
            ("map", _) => {
                let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                let default = |key: &str| schema["items"]["properties"][key].get("default").cloned();
                let mut keys: Vec<_> = keys
                    .filter_map(Value::as_str)
                    .map(|key| (key.to_owned(), default(key)))
                    .collect();
                keys.sort_by(|a, b| a.0.cmp(&b.0));
                Rule::Keyed(keys)
            }
            ("atomic", _) | (_, "atomic") => Rule::Atomic,
            _other => Rule::Deduced,
        };
        let properties = schema["properties"].as_object().into_iter().flatten();
        let fields = properties
            .map(|(name, child)| (name.clone(), Self::from_schema(child)))
            .collect();
        let every = schema
            .get("items")
            .or_else(|| schema.get("additionalProperties"))
            .filter(|s| s.is_object());
        Self {
            rule,
            fields,
            every: every.map(|child| Box::new(Self::from_schema(child))),
        }
    }

    /// Of a builtin kind.
    pub(crate) fn of_builtin(kind: &str) -> &'static Self {
        static SHAPES: OnceLock<BTreeMap<&'static str, Shape>> = OnceLock::new();
        let shapes = SHAPES.get_or_init(|| {
            let mut shapes = BTreeMap::new();
            for (kind, rules, pod_at) in KINDS {
                let mut shape = parse(rules);
                shape.fields.insert("metadata".into(), parse(METADATA));
                if let Some(path) = pod_at {
                    *at(&mut shape, path) = parse(POD_SPEC);
                }
                shapes.insert(*kind, shape);
            }
            shapes.insert(
                "",
                Shape {
                    fields: BTreeMap::from([("metadata".into(), parse(METADATA))]),
                    ..Shape::default()
                },
            );
            shapes
        });
        shapes.get(kind).or_else(|| shapes.get("")).unwrap_or(&DEDUCED)
    }
}

/// The place in a shape that a dotted path names; `[]` and `*` are items and values of any key.
fn at<'a>(shape: &'a mut Shape, path: &str) -> &'a mut Shape {
    let mut here = shape;
    for name in path.replace("[]", ".*").split('.').filter(|name| !name.is_empty()) {
        here = if name == "*" {
            here.every.get_or_insert_default()
        } else {
            here.fields.entry(name.to_owned()).or_default()
        };
    }
    here
}

/// Lines of `path rule`, where a rule is `atomic`, `set` or keys with their defaults: `port,protocol=TCP`.
fn parse(rules: &str) -> Shape {
    let mut shape = Shape::default();
    for line in rules.lines() {
        let Some((path, rule)) = line.trim().split_once(' ') else {
            continue;
        };
        at(&mut shape, path).rule = match rule {
            "atomic" => Rule::Atomic,
            "set" => Rule::Set,
            keys => Rule::Keyed(
                keys.split(',')
                    .map(|key| match key.split_once('=') {
                        Some((key, default)) => (key.to_owned(), Some(default.into())),
                        None => (key.to_owned(), None),
                    })
                    .collect(),
            ),
        };
    }
    shape
}

const METADATA: &str = "finalizers set
    ownerReferences uid";

const POD_SPEC: &str = "nodeSelector atomic
    tolerations atomic
    imagePullSecrets name
    hostAliases ip
    schedulingGates name
    resourceClaims name
    readinessGates atomic
    topologySpreadConstraints topologyKey,whenUnsatisfiable
    topologySpreadConstraints[].labelSelector atomic
    volumes name
    volumes[].configMap.items atomic
    volumes[].secret.items atomic
    volumes[].projected.sources atomic
    volumes[].downwardAPI.items atomic
    containers name
    containers[].args atomic
    containers[].command atomic
    containers[].envFrom atomic
    containers[].env name
    containers[].env[].valueFrom.fieldRef atomic
    containers[].env[].valueFrom.secretKeyRef atomic
    containers[].env[].valueFrom.configMapKeyRef atomic
    containers[].ports containerPort,protocol=TCP
    containers[].volumeMounts mountPath
    containers[].volumeDevices devicePath
    containers[].securityContext.capabilities.add atomic
    containers[].securityContext.capabilities.drop atomic
    initContainers name
    initContainers[].args atomic
    initContainers[].command atomic
    initContainers[].env name
    initContainers[].volumeMounts mountPath
    initContainers[].securityContext.capabilities.add atomic
    initContainers[].securityContext.capabilities.drop atomic
    securityContext.supplementalGroups atomic
    securityContext.sysctls atomic
    affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution atomic
    affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution atomic
    affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution atomic
    affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution atomic";

/// Kind, rules, and where a pod's spec is in it.
const KINDS: &[(&str, &str, Option<&str>)] = &[
    (
        "Service",
        "spec.ports port,protocol=TCP
        spec.selector atomic
        spec.clusterIPs atomic
        spec.externalIPs atomic
        spec.ipFamilies atomic
        spec.loadBalancerSourceRanges atomic
        status.conditions type
        status.loadBalancer.ingress atomic",
        None,
    ),
    (
        "Node",
        "spec.taints atomic
        spec.podCIDRs set
        status.conditions type
        status.addresses type
        status.images atomic
        status.volumesAttached atomic",
        None,
    ),
    ("Namespace", "spec.finalizers atomic\nstatus.conditions type", None),
    (
        "EndpointSlice",
        "endpoints atomic
        ports atomic",
        None,
    ),
    ("ServiceAccount", "imagePullSecrets atomic\nsecrets name", None),
    (
        "Pod",
        "status.conditions type\nstatus.podIPs ip\nstatus.hostIPs atomic",
        Some("spec"),
    ),
    (
        "Deployment",
        "spec.selector atomic\nstatus.conditions type",
        Some("spec.template.spec"),
    ),
    (
        "DaemonSet",
        "spec.selector atomic\nstatus.conditions type",
        Some("spec.template.spec"),
    ),
    (
        "PodDisruptionBudget",
        "spec.selector atomic\nstatus.conditions type",
        None,
    ),
    (
        "NetworkPolicy",
        "spec.podSelector atomic\nspec.ingress atomic\nspec.egress atomic\nspec.policyTypes atomic",
        None,
    ),
    (
        "ClusterRole",
        "rules atomic\naggregationRule.clusterRoleSelectors atomic",
        None,
    ),
    ("Role", "rules atomic", None),
    ("ClusterRoleBinding", "roleRef atomic\nsubjects atomic", None),
    ("RoleBinding", "roleRef atomic\nsubjects atomic", None),
    ("Event", "involvedObject atomic\nregarding atomic\nrelated atomic", None),
    (
        "ValidatingAdmissionPolicy",
        "spec.validations atomic
        spec.auditAnnotations atomic
        spec.variables name
        spec.matchConditions name
        spec.paramKind atomic
        spec.matchConstraints atomic
        status.conditions type",
        None,
    ),
    (
        "ValidatingAdmissionPolicyBinding",
        "spec.validationActions set\nspec.matchResources atomic\nspec.paramRef atomic",
        None,
    ),
    (
        "CustomResourceDefinition",
        "spec.versions atomic
        spec.names.shortNames atomic
        spec.names.categories atomic
        status.conditions type
        status.storedVersions atomic
        status.acceptedNames.shortNames atomic
        status.acceptedNames.categories atomic",
        None,
    ),
];
