//! LIST: selection, paging, and the past.
//!
//! Never holds a snapshot: the past is read back from the history, and once that is forgotten a list must be started anew.

use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::failure::{Cause, Failure};
use crate::paths::{Query, Target};
use crate::resource::Resource;
use crate::selector::Selector;
use crate::store::{Key, State, Stored};
use crate::view::View;

/// A list, as JSON.
pub(crate) fn list(
    state: &mut State,
    resource: &Resource,
    target: &Target,
    query: &Query,
    view: View,
) -> Result<Bytes, Failure> {
    let selector = Selector::parse(query.value("labelSelector"), query.value("fieldSelector"), resource)?;
    let asked = version(query)?;
    let mut limit = query
        .value("limit")
        .and_then(|limit| limit.parse::<usize>().ok())
        .unwrap_or(0);
    let token = match query.value("continue") {
        Some(token) => Some(Token::parse(token)?),
        None => None,
    };
    let matching = query.value("resourceVersionMatch");
    if matching.is_some() && asked.is_none() {
        let cause = Cause::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        );
        return Err(Failure::invalid("meta.k8s.io", "ListOptions", "", &[cause]));
    }
    if asked == Some(0) && matching.is_none() {
        // Served from the watch cache, which knows no pages.
        limit = 0;
    }
    let latest = state.revision;
    if asked.is_some_and(|asked| asked > latest) {
        return Err(too_large(asked.unwrap_or(0), latest));
    }
    let at = match (&token, matching) {
        (Some(token), _) => token.revision,
        (None, Some("Exact")) => asked.unwrap_or(latest),
        (None, _) => latest,
    };
    let table = state.table(&resource.table);
    let past;
    let objects = if at == latest {
        &table.objects
    } else {
        past = table.at(at).map_err(|_| match token {
            Some(_) => Failure::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list \
                 without the continue parameter.",
            ),
            None => Failure::expired(format!("The resourceVersion for the provided list is too old: {at}")),
        })?;
        &past
    };
    let all = objects.iter().filter(|(key, stored)| {
        (target.namespace.is_empty() || key.0 == target.namespace)
            && token.as_ref().is_none_or(|token| token.after < **key)
            && selector.matches(&stored.value)
    });
    let all: Vec<(&Key, &Stored)> = all.map(|(key, stored)| (key, stored.as_ref())).collect();
    let count = if limit == 0 { all.len() } else { limit.min(all.len()) };
    let mut metadata = json!({"resourceVersion": at.to_string()});
    if let (true, Some((last, _))) = (count < all.len(), all[..count].last()) {
        metadata["continue"] = Token {
            revision: at,
            after: (*last).clone(),
        }
        .to_string()
        .into();
        if selector.is_empty() {
            metadata["remainingItemCount"] = (all.len() - count).into();
        }
    }
    let items: Vec<&Stored> = all[..count].iter().map(|(_, stored)| *stored).collect();
    Ok(view.list(resource, &items, &metadata))
}

/// `resourceVersion`, if there is one.
pub(crate) fn version(query: &Query) -> Result<Option<u64>, Failure> {
    let Some(text) = query.value("resourceVersion") else {
        return Ok(None);
    };
    let parsed = text.parse().map_err(|_| {
        let cause = Cause::invalid(
            "resourceVersion",
            &text.into(),
            "invalid syntax: must be an unsigned integer",
        );
        Failure::invalid("", "ListOptions", "", &[cause])
    })?;
    Ok(Some(parsed))
}

/// A revision that is yet to come.
pub(crate) fn too_large(asked: u64, latest: u64) -> Failure {
    let mut failure = Failure::new(
        504,
        "Timeout",
        format!("Too large resource version: {asked}, current: {latest}"),
    );
    failure.details = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1});
    failure
}

/// Where the next page starts.
struct Token {
    revision: u64,
    after: Key,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Opaque to clients, so that nobody comes to rely on it.
        let text = json!([self.revision, self.after.0, self.after.1]).to_string();
        text.bytes().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Token {
    fn parse(text: &str) -> Result<Self, Failure> {
        let bytes: Option<Vec<u8>> = (0..text.len())
            .step_by(2)
            .map(|i| {
                text.get(i..i + 2)
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            })
            .collect();
        let parsed = bytes.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let token = parsed.and_then(|value| {
            let after = (value[1].as_str()?.to_owned(), value[2].as_str()?.to_owned());
            Some(Self {
                revision: value[0].as_u64()?,
                after,
            })
        });
        token.ok_or_else(|| Failure::bad_request("continue key is not valid: illegal base64 data"))
    }
}
