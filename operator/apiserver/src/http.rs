//! Requests over HTTP: who asks for what, and what meets them.
//!
//! Never touches objects itself: reads are [`crate::list`] and [`crate::watch`], writes [`crate::writes`].

use std::sync::{Arc, PoisonError};

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Response, header};
use serde_json::{Value, json};

use crate::answer::{self, Answer};
use crate::discovery;
use crate::events;
use crate::failure::Failure;
use crate::faults::Fault;
use crate::identity::Identity;
use crate::list;
use crate::patch::{Patch, yaml};
use crate::paths::{Query, Route, Target};
use crate::rbac;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::server::{Shared, now};
use crate::store::Key;
use crate::view::View;
use crate::watch;
use crate::writes::{self, DeleteOptions, FieldValidation, Outcome, Request};

/// Why a connection is cut instead of answered.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut on purpose")]
pub(crate) struct Cut;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Plain HTTP, in tests: an administrator, unless a token says otherwise.
    Local,
    /// TLS: whose certificate was shown, if any.
    Shown(Option<Identity>),
}

/// A request as read.
struct Call {
    method: Method,
    target: Target,
    query: Query,
    content_type: String,
    agent: String,
    view: View,
    user: Identity,
    body: Bytes,
}

pub(crate) async fn handle(
    shared: Arc<Shared>,
    caller: Caller,
    request: hyper::Request<Incoming>,
) -> Result<Response<Answer>, Cut> {
    if shared.faults.refuses() {
        return Err(Cut);
    }
    let delay = shared.faults.delay();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let (head, body) = request.into_parts();
    let text = |name| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or("")
            .to_owned()
    };
    let authorization = text(header::AUTHORIZATION);
    let (token, path) = identity_in(head.uri.path(), &authorization);
    let user = match who(&shared, caller, token) {
        Ok(user) => user,
        Err(failure) => return Ok(answer::failure(&failure)),
    };
    let route = Route::parse(path);
    let Route::Objects(target) = route else {
        return Ok(discovery::answer(&shared, &route));
    };
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    let call = Call {
        method: head.method.clone(),
        target,
        query: Query::parse(head.uri.query().unwrap_or("")),
        content_type: text(header::CONTENT_TYPE),
        agent: text(header::USER_AGENT),
        view: View::accepted(&text(header::ACCEPT)),
        user,
        body,
    };
    objects(&shared, &call)
}

/// `kubectl` sends no token over plain HTTP: it may be in the path, `/as/TOKEN/api/...`.
fn identity_in<'a>(path: &'a str, authorization: &'a str) -> (Option<&'a str>, &'a str) {
    if let Some(rest) = path.strip_prefix("/as/")
        && let Some(end) = rest.find('/')
    {
        return (Some(&rest[..end]), &rest[end..]);
    }
    (authorization.strip_prefix("Bearer "), path)
}

fn who(shared: &Shared, caller: Caller, token: Option<&str>) -> Result<Identity, Failure> {
    let known = match (caller, token) {
        (Caller::Shown(Some(identity)), _) => Some(identity),
        (Caller::Shown(None) | Caller::Local, Some(token)) => {
            let identities = shared.identities.lock().unwrap_or_else(PoisonError::into_inner);
            identities.get(token).cloned()
        }
        (Caller::Local, None) => Some(Identity::admin()),
        (Caller::Shown(None), None) => None,
    };
    known.ok_or_else(|| Failure::new(401, "Unauthorized", "Unauthorized"))
}

/// What is done, in the words of Roles; `apply` is a kind of `patch` that tests tell apart.
fn verb(call: &Call) -> Option<&'static str> {
    let one = !call.target.name.is_empty();
    let watching = call.query.flag("watch");
    match (&call.method, one) {
        (&Method::GET, _) if watching => Some("watch"),
        (&Method::GET | &Method::HEAD, true) => Some("get"),
        (&Method::GET | &Method::HEAD, false) => Some("list"),
        (&Method::POST, false) => Some("create"),
        (&Method::PUT, true) => Some("update"),
        (&Method::PATCH, true) if call.content_type.starts_with("application/apply-patch") => Some("apply"),
        (&Method::PATCH, true) => Some("patch"),
        (&Method::DELETE, true) => Some("delete"),
        (&Method::DELETE, false) => Some("deletecollection"),
        _other => None,
    }
}

/// What rights are asked about: a list or watch of one object by its name is one of that name, so that a role may name it.
fn asked_for(call: &Call) -> Target {
    let mut target = call.target.clone();
    let selector = call.query.value("fieldSelector").unwrap_or_default();
    let named = selector.split(',').find_map(|term| term.strip_prefix("metadata.name="));
    if let (true, Some(name)) = (target.name.is_empty(), named) {
        target.name = name.trim_start_matches('=').to_owned();
    }
    target
}

fn objects(shared: &Arc<Shared>, call: &Call) -> Result<Response<Answer>, Cut> {
    let target = &call.target;
    let found = shared
        .lock()
        .registry
        .find(&target.group, &target.version, &target.plural);
    let Some(resource) = found else {
        return Ok(answer::failure(&Failure::no_resource()));
    };
    let (Some(verb), true) = (verb(call), served(&resource, target)) else {
        let known = served(&resource, target);
        return Ok(answer::failure(&if known {
            Failure::method_not_allowed()
        } else {
            Failure::no_resource()
        }));
    };
    let reading = ["get", "list", "watch"].contains(&verb);
    let counts = if reading { &shared.reads } else { &shared.writes };
    counts.count(verb, &target.plural, &target.subresource);
    if shared.authorizes
        && let Err(failure) = rbac::authorize(&shared.lock(), &call.user, verb, &resource, &asked_for(call))
    {
        return Ok(answer::failure(&failure));
    }
    if shared.authorizes && verb == "apply" && target.subresource.is_empty() {
        // Who applies what is not there creates it.
        let state = shared.lock();
        if state.find(&resource.table, &target.namespace, &target.name).is_none()
            && let Err(failure) = rbac::authorize(&state, &call.user, "create", &resource, target)
        {
            return Ok(answer::failure(&failure));
        }
    }
    let fault = shared.faults.meet(verb, &target.plural);
    if let Some(Fault::Answer(code)) = fault {
        let failure = Failure::injected(code, &target.group, &target.plural, &target.name);
        return Ok(answer::failure(&failure));
    }
    let answered = if reading {
        read(shared, call, verb, &resource, fault == Some(Fault::Expire))
    } else {
        write(shared, call, verb, &resource)
    };
    if fault == Some(Fault::LoseAnswer) {
        return Err(Cut);
    }
    Ok(answered.unwrap_or_else(|failure| answer::failure(&failure)))
}

/// Whether there is such a path.
fn served(resource: &Resource, target: &Target) -> bool {
    if !resource.namespaced && !target.namespace.is_empty()
        || resource.namespaced && target.namespace.is_empty() && !target.name.is_empty()
    {
        return false;
    }
    match target.subresource.as_str() {
        "" => true,
        "status" => resource.status,
        "finalize" => resource.plural == "namespaces",
        _other => false,
    }
}

fn read(
    shared: &Arc<Shared>,
    call: &Call,
    verb: &str,
    resource: &Arc<Resource>,
    expire: bool,
) -> Result<Response<Answer>, Failure> {
    let target = &call.target;
    match verb {
        "watch" => watch::start(shared, resource, target, &call.query, call.view, expire),
        "list" => {
            let body = list::list(&mut shared.lock(), resource, target, &call.query, call.view)?;
            Ok(answer::bytes(200, "application/json", body))
        }
        _get => {
            let found = shared.lock().find(&resource.table, &target.namespace, &target.name);
            let stored = found.ok_or_else(|| Failure::not_found(&resource.group, &resource.plural, &target.name))?;
            Ok(answer::bytes(200, "application/json", call.view.one(resource, &stored)))
        }
    }
}

fn write(shared: &Arc<Shared>, call: &Call, verb: &str, resource: &Resource) -> Result<Response<Answer>, Failure> {
    let (target, query) = (&call.target, &call.query);
    let manager = match query.value("fieldManager") {
        Some(manager) if manager.len() > 128 => {
            return Err(Failure::bad_request(
                "fieldManager: Too long: may not be more than 128 bytes",
            ));
        }
        Some(manager) => manager.to_owned(),
        None => call.agent.split('/').next().unwrap_or("").to_owned(),
    };
    let field_validation = match query.value("fieldValidation") {
        Some("Ignore") => FieldValidation::Ignore,
        Some("Strict") => FieldValidation::Strict,
        Some("Warn") | None => FieldValidation::Warn,
        Some(other) => {
            return Err(Failure::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}"
            )));
        }
    };
    if query.all("dryRun").any(|value| value != "All") {
        return Err(Failure::bad_request(
            "dryRun: Unsupported value: supported values: \"All\"",
        ));
    }
    let request = Request {
        resource,
        namespace: &target.namespace,
        name: &target.name,
        subresource: &target.subresource,
        manager,
        now: now(),
        user: call.user.clone(),
        dry_run: query.all("dryRun").any(|value| value == "All"),
        field_validation,
    };
    let object = || -> Result<Value, Failure> {
        let body = yaml(&call.body)?;
        Ok(if resource.group == "events.k8s.io" {
            events::to_core(body)
        } else {
            body
        })
    };
    let core;
    let request = if resource.group == "events.k8s.io" {
        // One store: Events are written in their core form.
        core = shared
            .lock()
            .registry
            .find("", "v1", "events")
            .ok_or_else(Failure::no_resource)?;
        Request {
            resource: &core,
            ..request
        }
    } else {
        request
    };
    let outcome = match verb {
        "create" if resource.namespaced && target.namespace.is_empty() => return Err(Failure::method_not_allowed()),
        "create" => {
            let object = object()?;
            shared.write(|state| writes::create(state, &request, &object))?
        }
        "update" => {
            let object = object()?;
            shared.write(|state| writes::update(state, &request, &object))?
        }
        "patch" | "apply" => {
            let mut patch = Patch::parse(&call.content_type, &call.body)?;
            if let (Patch::Apply(_), None) = (&patch, query.value("fieldManager")) {
                let cause = crate::failure::Cause::required("fieldManager", "is required for apply patch");
                return Err(Failure::invalid("meta.k8s.io", "PatchOptions", "", &[cause]));
            }
            if let (true, Patch::Apply(body) | Patch::Merge(body)) = (resource.group == "events.k8s.io", &mut patch) {
                *body = events::to_core(body.take());
            }
            let force = query.flag("force");
            shared.write(|state| writes::patch(state, &request, &patch, force))?
        }
        "delete" => {
            let options = delete_options(call)?;
            let outcome = shared.write(|state| writes::delete(state, &request, &options))?;
            if outcome.gone {
                let uid = outcome.object.value["metadata"]["uid"].clone();
                let mut details = json!({"name": target.name, "kind": resource.plural, "uid": uid});
                if !resource.group.is_empty() {
                    details["group"] = resource.group.clone().into();
                }
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
                return Ok(answer::json(200, &status));
            }
            outcome
        }
        _deletecollection => return delete_collection(shared, call, &request),
    };
    Ok(respond(call.view, resource, &outcome))
}

fn respond(view: View, resource: &Resource, outcome: &Outcome) -> Response<Answer> {
    let code = if outcome.created { 201 } else { 200 };
    let mut response = answer::bytes(code, "application/json", view.one(resource, &outcome.object));
    for warning in &outcome.warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = format!("299 - \"{text}\"").parse() {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}

fn delete_options(call: &Call) -> Result<DeleteOptions, Failure> {
    let body = if call.body.is_empty() {
        Value::Null
    } else {
        yaml(&call.body)?
    };
    let mut options = DeleteOptions::parse(&body);
    if let Some(policy) = call.query.value("propagationPolicy") {
        options.propagation = Some(policy.to_owned());
    }
    match options.propagation.as_deref() {
        Some("Background" | "Foreground" | "Orphan") | None => Ok(options),
        Some(other) => Err(Failure::bad_request(format!(
            "propagationPolicy: Unsupported value: {other:?}"
        ))),
    }
}

fn delete_collection(shared: &Shared, call: &Call, request: &Request<'_>) -> Result<Response<Answer>, Failure> {
    let (resource, query) = (request.resource, &call.query);
    let selector = Selector::parse(query.value("labelSelector"), query.value("fieldSelector"), resource)?;
    let options = delete_options(call)?;
    let body = list::list(&mut shared.lock(), resource, &call.target, query, View::Object)?;
    shared.write(|state| -> Result<(), Failure> {
        let objects = &state.table(&resource.table).objects;
        let fitting = objects.iter().filter(|(key, stored)| {
            (request.namespace.is_empty() || key.0 == request.namespace) && selector.matches(&stored.value)
        });
        let keys: Vec<Key> = fitting.map(|(key, _)| key.clone()).collect();
        for (namespace, name) in &keys {
            writes::delete(
                state,
                &Request {
                    namespace,
                    name,
                    ..request.again()
                },
                &options,
            )?;
        }
        Ok(())
    })?;
    Ok(answer::bytes(200, "application/json", body))
}
