//! Refusals, in the words of a real API server.
//!
//! Never decides to refuse: it only knows codes, reasons and wording, which clients and people look at.

use std::fmt;

use serde_json::{Value, json};

/// Why a request was refused: what becomes a `Status` object.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// HTTP status code.
    pub code: u16,
    /// `Status.reason`: `NotFound`, `AlreadyExists`, `Conflict`, `Invalid`, `Forbidden`, `Expired`, ...
    pub reason: &'static str,
    /// `Status.message`.
    pub message: String,
    /// `Status.details`, or null.
    pub details: Value,
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.reason, self.message)
    }
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, ...
    pub(crate) reason: &'static str,
    /// Words, without the field.
    pub(crate) message: String,
    /// Path: `spec.ports[0].port`.
    pub(crate) field: String,
}

impl Cause {
    /// A value that cannot be.
    pub(crate) fn invalid(field: impl Into<String>, value: &Value, detail: impl fmt::Display) -> Self {
        Self {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {detail}"),
            field: field.into(),
        }
    }

    /// A value of the wrong JSON type.
    pub(crate) fn of_type(field: impl Into<String>, value: &Value, detail: impl fmt::Display) -> Self {
        Self {
            reason: "FieldValueTypeInvalid",
            message: format!("Invalid value: {value}: {detail}"),
            field: field.into(),
        }
    }

    /// A value that is missing.
    pub(crate) fn required(field: impl Into<String>, detail: &str) -> Self {
        let message = if detail.is_empty() {
            "Required value".into()
        } else {
            format!("Required value: {detail}")
        };
        Self {
            reason: "FieldValueRequired",
            message,
            field: field.into(),
        }
    }

    /// A value that is not one of `supported`.
    pub(crate) fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|name| format!("\"{name}\"")).collect();
        Self {
            reason: "FieldValueNotSupported",
            message: format!("Unsupported value: {value}: supported values: {}", list.join(", ")),
            field: field.into(),
        }
    }

    /// A value that is there twice.
    pub(crate) fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {value}"),
            field: field.into(),
        }
    }

    /// A field that must not be set.
    pub(crate) fn forbidden(field: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self {
            reason: "FieldValueForbidden",
            message: format!("Forbidden: {detail}"),
            field: field.into(),
        }
    }

    /// A rule of a custom resource that does not hold for `object`.
    pub(crate) fn rule<'a>(field: &str, object: &'a Value, message: &str, reason: Option<&str>) -> Self {
        match reason {
            Some("FieldValueForbidden") => Self::forbidden(field, message),
            Some("FieldValueRequired") => Self::required(field, message),
            Some("FieldValueDuplicate") => Self {
                reason: "FieldValueDuplicate",
                message: format!("Duplicate value: {message}"),
                field: field.into(),
            },
            Some(_) | None => {
                let pointer = field.replace('[', ".").replace(']', "");
                let step = |at: &'a Value, name: &str| match name.parse::<usize>() {
                    Ok(index) if at.is_array() => at.get(index),
                    Ok(_) | Err(_) => at.get(name),
                };
                let at = pointer
                    .split('.')
                    .filter(|name| !name.is_empty())
                    .try_fold(object, step);
                let at = at.unwrap_or(&Value::Null);
                let value = if at.is_object() { "object".into() } else { at.clone() };
                Self::invalid(field, &value, message)
            }
        }
    }

    /// More items than there may be.
    pub(crate) fn too_many(field: impl Into<String>, count: usize, limit: u64) -> Self {
        Self {
            reason: "FieldValueTooMany",
            message: format!("Too many: {count}: must have at most {limit} items"),
            field: field.into(),
        }
    }

    /// A string that is too long.
    pub(crate) fn too_long(field: impl Into<String>, limit: u64) -> Self {
        Self {
            reason: "FieldValueTooLong",
            message: format!("Too long: may not be more than {limit} bytes"),
            field: field.into(),
        }
    }
}

impl Failure {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
        }
    }

    pub(crate) fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self {
            code: 404,
            reason: "NotFound",
            message: format!("{} \"{name}\" not found", qualified(group, plural)),
            details: details(group, plural, name),
        }
    }

    /// No such path.
    pub(crate) fn no_resource() -> Self {
        Self {
            code: 404,
            reason: "NotFound",
            message: "the server could not find the requested resource".into(),
            details: json!({}),
        }
    }

    pub(crate) fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self {
            code: 409,
            reason: "AlreadyExists",
            message: format!("{} \"{name}\" already exists", qualified(group, plural)),
            details: details(group, plural, name),
        }
    }

    pub(crate) fn conflict(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        Self {
            code: 409,
            reason: "Conflict",
            message: format!(
                "Operation cannot be fulfilled on {} \"{name}\": {why}",
                qualified(group, plural)
            ),
            details: details(group, plural, name),
        }
    }

    /// Somebody else wrote in between.
    pub(crate) fn modified(group: &str, plural: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, plural, name, why)
    }

    /// The object is wrong in all of `causes`.
    pub(crate) fn invalid(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let said: Vec<String> = causes
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect();
        let said = if said.len() == 1 {
            said.concat()
        } else {
            format!("[{}]", said.join(", "))
        };
        let mut details = details(group, kind, name);
        details["causes"] = causes
            .iter()
            .map(|cause| json!({"reason": cause.reason, "message": cause.message, "field": cause.field}))
            .collect();
        let qualified = qualified(group, kind);
        Self {
            code: 422,
            reason: "Invalid",
            message: format!("{qualified} \"{name}\" is invalid: {said}"),
            details,
        }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn forbidden(group: &str, plural: &str, name: &str, why: impl fmt::Display) -> Self {
        let subject = if name.is_empty() {
            String::new()
        } else {
            format!(" \"{name}\"")
        };
        Self {
            code: 403,
            reason: "Forbidden",
            message: format!("{}{subject} is forbidden: {why}", qualified(group, plural)),
            details: details(group, plural, name),
        }
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self {
            code: 405,
            reason: "MethodNotAllowed",
            message: "the server does not allow this method on the requested resource".into(),
            details: json!({}),
        }
    }

    /// An answer with this code that an administrator of faults asked for.
    pub(crate) fn injected(code: u16, group: &str, plural: &str, name: &str) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => return Self::forbidden(group, plural, name, "injected fault"),
            404 => return Self::no_resource(),
            409 => return Self::modified(group, plural, name),
            410 => return Self::expired("the provided resource version is too old: injected fault"),
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            503 => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            504 => ("Timeout", "request did not complete within the allotted timeout"),
            _other => ("InternalError", "Internal error occurred: injected fault"),
        };
        let mut failure = Self::new(code, reason, message);
        if code == 429 {
            failure.details = json!({"retryAfterSeconds": 1});
        }
        failure
    }

    /// The `Status` object.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

/// `services`, `vippools.vipline.dev`.
pub(crate) fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}

fn details(group: &str, kind: &str, name: &str) -> Value {
    let mut details = json!({"kind": kind});
    if !name.is_empty() {
        details["name"] = name.into();
    }
    if !group.is_empty() {
        details["group"] = group.into();
    }
    details
}
