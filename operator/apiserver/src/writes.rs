//! Writing objects: what every kind has in common.
//!
//! Never answers HTTP. The order is the real one: decode, merge or apply, take over what may not be changed, defaults, owners of
//! fields, validation, admission, and one write or none if nothing changed.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::admission;
use crate::apply::{self, Writer};
use crate::crd;
use crate::failure::{Cause, Failure};
use crate::identity::Identity;
use crate::kinds;
use crate::metadata;
use crate::patch::Patch;
use crate::resource::Resource;
use crate::schema;
use crate::shape::Shape;
use crate::store::{Key, State, Stored};
use crate::typed;

/// What is done with fields that a kind does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, with a warning.
    #[default]
    Warn,
    /// The object is refused.
    Strict,
}

/// All that a write needs beside the objects.
pub(crate) struct Request<'a> {
    pub(crate) resource: &'a Resource,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) manager: String,
    /// RFC 3339, seconds.
    pub(crate) now: String,
    pub(crate) user: Identity,
    pub(crate) dry_run: bool,
    pub(crate) field_validation: FieldValidation,
}

/// What a write came to.
pub(crate) struct Outcome {
    pub(crate) object: Arc<Stored>,
    /// 201 instead of 200.
    pub(crate) created: bool,
    /// Whether the object is gone now.
    pub(crate) gone: bool,
    /// Fields that were dropped.
    pub(crate) warnings: Vec<String>,
}

impl Request<'_> {
    /// The same again, to say otherwise in a part of it.
    pub(crate) fn again(&self) -> Self {
        Self {
            manager: self.manager.clone(),
            now: self.now.clone(),
            user: self.user.clone(),
            ..*self
        }
    }

    pub(crate) fn key(&self) -> Key {
        (self.namespace.to_owned(), self.name.to_owned())
    }

    fn writer(&self, apply: bool) -> Writer {
        Writer {
            manager: self.manager.clone(),
            apply,
            subresource: self.subresource.to_owned(),
            api_version: self.resource.api_version(),
            now: self.now.clone(),
        }
    }

    fn shape(&self) -> &Shape {
        match &self.resource.custom {
            Some(custom) => &custom.shape,
            None => Shape::of_builtin(&self.resource.kind),
        }
    }

    pub(crate) fn not_found(&self) -> Failure {
        Failure::not_found(&self.resource.group, &self.resource.plural, self.name)
    }

    fn conflict(&self, why: impl std::fmt::Display) -> Failure {
        Failure::conflict(&self.resource.group, &self.resource.plural, self.name, why)
    }

    fn invalid(&self, name: &str, causes: &[Cause]) -> Failure {
        Failure::invalid(&self.resource.group, &self.resource.kind, name, causes)
    }

    /// Reads a body as this kind: wrong types are refused, unknown fields dropped.
    fn decode(&self, body: &Value, warnings: &mut Vec<String>) -> Result<Value, Failure> {
        let (mut unknown, resource) = (Vec::new(), self.resource);
        if !body.is_object() {
            return Err(Failure::bad_request(
                "the object provided is unrecognized (must be of type Object)",
            ));
        }
        let mut body = body.clone();
        for (field, expected) in [("apiVersion", resource.api_version()), ("kind", resource.kind.clone())] {
            match body[field].as_str() {
                Some(given) if given == expected => {}
                Some(given) => {
                    return Err(Failure::bad_request(format!(
                        "{} in version \"{}\" cannot be handled as a {}: the {field} in the data ({given}) does not match \
                         the expected {field} ({expected})",
                        body["kind"].as_str().unwrap_or(""),
                        resource.version,
                        resource.kind
                    )));
                }
                None if resource.custom.is_none() => body[field] = expected.into(),
                None => {
                    let message = format!(
                        "Object '{}' is missing in '{body}'",
                        if field == "kind" { "Kind" } else { field }
                    );
                    return Err(Failure::bad_request(message));
                }
            }
        }
        metadata::decode(&mut body)?;
        let decoded = match (&resource.decode, &resource.custom) {
            (Some(decode), _) => {
                let decoded = decode(&body).map_err(Failure::bad_request)?;
                typed::unknown_fields(&body, &decoded, "", &mut unknown);
                decoded
            }
            (None, Some(custom)) => {
                let mut decoded = body.clone();
                schema::prune(&mut decoded, &custom.schema, "", &mut unknown);
                decoded
            }
            (None, None) => body.clone(),
        };
        if !unknown.is_empty() {
            let said: Vec<String> = unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
            match self.field_validation {
                FieldValidation::Ignore => {}
                FieldValidation::Warn => warnings.extend(said),
                FieldValidation::Strict => {
                    return Err(Failure::bad_request(format!(
                        "{kind} in version \"{}\" cannot be handled as a {kind}: strict decoding error: {}",
                        resource.version,
                        said.join(", "),
                        kind = resource.kind,
                    )));
                }
            }
        }
        Ok(decoded)
    }
}

/// POST.
pub(crate) fn create(state: &mut State, request: &Request<'_>, body: &Value) -> Result<Outcome, Failure> {
    let mut warnings = Vec::new();
    let mut object = request.decode(body, &mut warnings)?;
    if object["metadata"]["resourceVersion"]
        .as_str()
        .is_some_and(|v| !v.is_empty())
    {
        let message = "resourceVersion should not be set on objects to be created";
        return Err(Failure::new(500, "InternalError", message));
    }
    metadata::place(&mut object, request)?;
    born(state, request, object, false, warnings)
}

/// What is left to do for a new object. `applied`: its managed fields are in it.
fn born(
    state: &mut State,
    request: &Request<'_>,
    mut object: Value,
    applied: bool,
    warnings: Vec<String>,
) -> Result<Outcome, Failure> {
    let resource = request.resource;
    metadata::give_name(state, request, &mut object)?;
    let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
    if resource.namespaced {
        metadata::check_namespace(state, request, &name)?;
    }
    if state.find(&resource.table, request.namespace, &name).is_some() {
        return Err(Failure::already_exists(&resource.group, &resource.plural, &name));
    }
    metadata::begin(state, request, &mut object);
    if resource.status && resource.plural != "nodes" {
        kinds::drop_field(&mut object, "status");
    }
    let managed = kinds::drop_managed(&mut object);
    default(state, resource, None, &mut object);
    kinds::prepare(state, resource, None, &mut object)?;
    if applied {
        kinds::give_managed(&mut object, managed);
    } else {
        let base = if resource.custom.is_some() {
            json!({"metadata": {}})
        } else {
            json!({"metadata": {}, "spec": {}, "status": {}})
        };
        apply::update(&base, &mut object, request.shape(), &request.writer(false));
    }
    validate(state, request, &name, None, &object)?;
    admission::review(state, request, "CREATE", Some(&object), None)?;
    let object = if request.dry_run {
        Arc::new(Stored::apart(object, state.revision))
    } else {
        let stored = state.put(&resource.table, (request.namespace.to_owned(), name), object);
        crd::written(state, resource, &stored.value);
        stored
    };
    Ok(Outcome {
        object,
        created: true,
        gone: false,
        warnings,
    })
}

/// PUT.
pub(crate) fn update(state: &mut State, request: &Request<'_>, body: &Value) -> Result<Outcome, Failure> {
    let mut warnings = Vec::new();
    let mut object = request.decode(body, &mut warnings)?;
    metadata::place(&mut object, request)?;
    if object["metadata"]["name"].as_str() != Some(request.name) {
        let given = object["metadata"]["name"].as_str().unwrap_or("");
        return Err(Failure::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({})",
            request.name
        )));
    }
    let resource = request.resource;
    let Some(live) = state.find(&resource.table, request.namespace, request.name) else {
        let creates = matches!(resource.plural.as_str(), "services" | "leases" | "events")
            || resource.group == "rbac.authorization.k8s.io";
        if creates && request.subresource.is_empty() && object["metadata"]["uid"].is_null() {
            kinds::drop_metadata(&mut object, "resourceVersion");
            return born(state, request, object, false, warnings);
        }
        return Err(request.not_found());
    };
    let conditional = resource.custom.is_some()
        || matches!(
            resource.plural.as_str(),
            "leases" | "customresourcedefinitions" | "validatingadmissionpolicies"
        );
    if conditional && object["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
        let cause = Cause::invalid("metadata.resourceVersion", &json!(0), "must be specified for an update");
        return Err(request.invalid(request.name, &[cause]));
    }
    change(state, request, &live, object, false, warnings)
}

/// PATCH of any kind.
pub(crate) fn patch(state: &mut State, request: &Request<'_>, patch: &Patch, force: bool) -> Result<Outcome, Failure> {
    let (mut warnings, resource) = (Vec::new(), request.resource);
    let live = state.find(&resource.table, request.namespace, request.name);
    if let Patch::Apply(config) = patch {
        if config["metadata"]["managedFields"]
            .as_array()
            .is_some_and(|fields| !fields.is_empty())
        {
            return Err(Failure::bad_request("metadata.managedFields must be nil"));
        }
        let mut config = request.decode(config, &mut warnings)?;
        metadata::place(&mut config, request)?;
        if config["metadata"]["name"]
            .as_str()
            .is_some_and(|name| name != request.name)
        {
            let given = config["metadata"]["name"].as_str().unwrap_or("");
            return Err(Failure::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({})",
                request.name
            )));
        }
        config["metadata"]["name"] = request.name.into();
        kinds::reset(resource, request.subresource, &mut config);
        kinds::before_apply(resource, &mut config);
        let Some(live) = live else {
            if !request.subresource.is_empty() {
                return Err(request.not_found());
            }
            if let Some(uid) = config["metadata"]["uid"].as_str() {
                let why =
                    format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
                return Err(request.conflict(why));
            }
            if config["metadata"]["resourceVersion"].as_str().is_some() {
                return Err(request.not_found());
            }
            let base = json!({"apiVersion": resource.api_version(), "kind": resource.kind, "metadata": {}});
            let object = apply::apply(&base, &config, request.shape(), &request.writer(true), force)?;
            return born(state, request, object, true, warnings);
        };
        preconditions(request, &live, &config["metadata"])?;
        let object = apply::apply(&live.value, &config, request.shape(), &request.writer(true), force)?;
        return change(state, request, &live, object, true, warnings);
    }
    let Some(live) = live else {
        return Err(request.not_found());
    };
    let patched = patch.patched(&live.value, &resource.kind, resource.custom.is_some())?;
    let mut object = request.decode(&patched, &mut warnings)?;
    metadata::place(&mut object, request)?;
    if object["metadata"]["name"].as_str() != Some(request.name) {
        let cause = Cause::invalid("metadata.name", &object["metadata"]["name"], "field is immutable");
        return Err(request.invalid(request.name, &[cause]));
    }
    change(state, request, &live, object, false, warnings)
}

/// `uid` and `resourceVersion` of an object as given must be those that it has.
fn preconditions(request: &Request<'_>, live: &Stored, metadata: &Value) -> Result<(), Failure> {
    if let Some(uid) = metadata["uid"].as_str().filter(|uid| !uid.is_empty()) {
        let is = live.value["metadata"]["uid"].as_str().unwrap_or("");
        if uid != is {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {is}");
            return Err(request.conflict(why));
        }
    }
    match metadata["resourceVersion"]
        .as_str()
        .filter(|version| !version.is_empty() && *version != "0")
    {
        Some(version) if version.parse::<u64>().is_err() => {
            let cause = Cause::invalid(
                "metadata.resourceVersion",
                &version.into(),
                "must be an unsigned integer",
            );
            Err(request.invalid(request.name, &[cause]))
        }
        Some(version) if version != live.revision.to_string() => Err(Failure::modified(
            &request.resource.group,
            &request.resource.plural,
            request.name,
        )),
        Some(_) | None => Ok(()),
    }
}

/// What is left to do for an object that is there. `applied`: its managed fields are in it.
fn change(
    state: &mut State,
    request: &Request<'_>,
    live: &Arc<Stored>,
    mut object: Value,
    applied: bool,
    warnings: Vec<String>,
) -> Result<Outcome, Failure> {
    let resource = request.resource;
    preconditions(request, live, &object["metadata"])?;
    metadata::keep(&live.value, &mut object);
    kinds::keep(resource, request.subresource, &live.value, &mut object);
    let managed = kinds::drop_managed(&mut object);
    if request.subresource.is_empty() {
        default(state, resource, Some(&live.value), &mut object);
        kinds::prepare(state, resource, Some(&live.value), &mut object)?;
    } else {
        default(state, resource, Some(&live.value), &mut object);
    }
    kinds::give_managed(&mut object, managed);
    if !applied {
        apply::update(&live.value, &mut object, request.shape(), &request.writer(false));
    }
    if resource.generation && kinds::spec_differs(&live.value, &object) {
        object["metadata"]["generation"] = (live.value["metadata"]["generation"].as_i64().unwrap_or(0) + 1).into();
    }
    object["metadata"]["resourceVersion"] = live.value["metadata"]["resourceVersion"].clone();
    validate(state, request, request.name, Some(&live.value), &object)?;
    admission::review(state, request, "UPDATE", Some(&object), Some(&live.value))?;
    let finished = metadata::is_finished(&object);
    if object == live.value && !finished {
        return Ok(Outcome {
            object: Arc::clone(live),
            created: false,
            gone: false,
            warnings,
        });
    }
    if request.dry_run {
        let object = Arc::new(Stored::apart(object, state.revision));
        return Ok(Outcome {
            object,
            created: false,
            gone: false,
            warnings,
        });
    }
    if finished {
        // The write that takes the last finalizer out removes the object.
        let last = object.clone();
        let object = state.remove(&resource.table, &request.key(), Some(last));
        let object = object.unwrap_or_else(|| Arc::clone(live));
        crd::removed(state, resource, &object.value);
        return Ok(Outcome {
            object,
            created: false,
            gone: true,
            warnings,
        });
    }
    let stored = state.put(&resource.table, request.key(), object);
    crd::written(state, resource, &stored.value);
    Ok(Outcome {
        object: stored,
        created: false,
        gone: false,
        warnings,
    })
}

fn default(state: &State, resource: &Resource, live: Option<&Value>, object: &mut Value) {
    match &resource.custom {
        Some(custom) => schema::default(object, &custom.schema),
        None => kinds::default(state, resource, live, object),
    }
}

fn validate(
    state: &State,
    request: &Request<'_>,
    name: &str,
    live: Option<&Value>,
    object: &Value,
) -> Result<(), Failure> {
    let mut causes = Vec::new();
    metadata::validate(request.resource, live, object, &mut causes);
    match &request.resource.custom {
        Some(custom) => schema::validate_object(custom, live, object, &mut causes),
        None => kinds::validate(state, request.resource, request.subresource, live, object, &mut causes),
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(request.invalid(name, &causes))
    }
}

/// What a DELETE asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    /// `Background`, `Foreground` or `Orphan`.
    pub(crate) propagation: Option<String>,
    /// `dryRun` may be in the body too.
    pub(crate) dry_run: bool,
}

impl DeleteOptions {
    pub(crate) fn parse(body: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Self {
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            propagation: text(&body["propagationPolicy"]),
            dry_run: body["dryRun"]
                .as_array()
                .is_some_and(|modes| modes.iter().any(|mode| mode == "All")),
        }
    }
}

/// DELETE.
pub(crate) fn delete(state: &mut State, request: &Request<'_>, options: &DeleteOptions) -> Result<Outcome, Failure> {
    let resource = request.resource;
    let Some(live) = state.find(&resource.table, request.namespace, request.name) else {
        return Err(request.not_found());
    };
    let given = json!({"uid": options.uid, "resourceVersion": options.resource_version});
    for (field, word, is) in [
        ("uid", "UID", live.value["metadata"]["uid"].as_str().unwrap_or("")),
        ("resourceVersion", "ResourceVersion", live.revision.to_string().as_str()),
    ] {
        if let Some(wanted) = given[field].as_str().filter(|wanted| *wanted != is) {
            let why = format!("Precondition failed: {word} in precondition: {wanted}, {word} in object meta: {is}");
            return Err(request.conflict(why));
        }
    }
    admission::review(state, request, "DELETE", None, Some(&live.value))?;
    kinds::may_delete(request)?;
    let kept = |object| {
        Ok(Outcome {
            object,
            created: false,
            gone: false,
            warnings: Vec::new(),
        })
    };
    if request.dry_run || options.dry_run {
        return kept(live);
    }
    let mut object = live.value.clone();
    let marked = !object["metadata"]["deletionTimestamp"].is_null();
    let extra = match options.propagation.as_deref() {
        Some("Foreground") => Some("foregroundDeletion"),
        Some("Orphan") => Some("orphan"),
        Some(_) | None => None,
    };
    if let Some(extra) = extra.filter(|_| !marked) {
        let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        finalizers.push(extra.into());
        object["metadata"]["finalizers"] = finalizers.into();
    }
    kinds::delete(resource, &mut object);
    if metadata::has_finalizers(&object) {
        if marked {
            return kept(live);
        }
        object["metadata"]["deletionTimestamp"] = request.now.clone().into();
        object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
        if let Some(generation) = object["metadata"]["generation"].as_i64() {
            object["metadata"]["generation"] = (generation + 1).into();
        }
        return kept(state.put(&resource.table, request.key(), object));
    }
    let gone = state.remove(&resource.table, &request.key(), None).unwrap_or(live);
    crd::removed(state, resource, &gone.value);
    Ok(Outcome {
        object: gone,
        created: false,
        gone: true,
        warnings: Vec::new(),
    })
}
