//! Label selectors as kubectl writes them.
//!
//! Never matches anything: it makes a [`LabelSelector`].

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// Why a selector cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SelectorError {
    /// Nothing between two commas, or nothing at all.
    #[error("a requirement is missing; one is like key=value, key!=value, `key in (a, b)`, `key notin (a)`, key, !key")]
    Empty,
    /// A key with characters that no label has.
    #[error("{0:?} is not a label key")]
    Key(String),
    /// A value with characters that no label value has.
    #[error("{0:?} is not a label value")]
    Value(String),
    /// `in` or `notin` without a list.
    #[error("{0:?}: `in` and `notin` need values in parentheses")]
    Set(String),
}

/// `a=b,c!=d,e in (f, g),h notin (i),j,!k`.
pub(super) fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
    let requirements = split(text).into_iter().map(requirement).collect::<Result<_, _>>()?;
    Ok(LabelSelector {
        match_expressions: Some(requirements),
        match_labels: None,
    })
}

/// At commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut depth = 0_u32;
    let mut start = 0;
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(text: &str) -> Result<LabelSelectorRequirement, SelectorError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(SelectorError::Empty);
    }
    if let Some(name) = text.strip_prefix('!') {
        return made(name, "DoesNotExist", Vec::new());
    }
    if let Some((name, value)) = text.split_once("!=") {
        return made(name, "NotIn", vec![value]);
    }
    if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return made(name, "In", vec![value]);
    }
    let Some((name, rest)) = text.split_once(char::is_whitespace) else {
        return made(text, "Exists", Vec::new());
    };
    let rest = rest.trim();
    // The longer word first: `notin` does not begin with `in`, but the order costs nothing.
    for (word, operator) in [("notin", "NotIn"), ("in", "In")] {
        if let Some(list) = rest.strip_prefix(word) {
            let list = list.trim();
            let inner = list.strip_prefix('(').and_then(|list| list.strip_suffix(')'));
            let inner = inner.ok_or_else(|| SelectorError::Set(text.to_owned()))?;
            return made(name, operator, inner.split(',').collect());
        }
    }
    Err(SelectorError::Key(text.to_owned()))
}

fn made(key: &str, operator: &str, values: Vec<&str>) -> Result<LabelSelectorRequirement, SelectorError> {
    let key = key.trim();
    let is_word = |text: &str| text.chars().all(|it| it.is_ascii_alphanumeric() || "-_./".contains(it));
    if key.is_empty() || !is_word(key) || key.len() > 317 {
        return Err(SelectorError::Key(key.to_owned()));
    }
    let values: Vec<_> = values.into_iter().map(|value| value.trim().to_owned()).collect();
    if let Some(value) = values
        .iter()
        .find(|value| !is_word(value) || value.contains('/') || value.len() > 63)
    {
        return Err(SelectorError::Value(value.clone()));
    }
    Ok(LabelSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: (!values.is_empty()).then_some(values),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<(String, String, Vec<String>)> {
        let selector = parse(text).unwrap();
        let requirements = selector.match_expressions.unwrap();
        let parts = requirements.into_iter();
        parts
            .map(|it| (it.key, it.operator, it.values.unwrap_or_default()))
            .collect()
    }

    fn part(key: &str, operator: &str, values: &[&str]) -> (String, String, Vec<String>) {
        let values = values.iter().map(ToString::to_string).collect();
        (key.to_owned(), operator.to_owned(), values)
    }

    #[test]
    fn all_forms_of_kubectl_are_read() {
        assert_eq!(
            parts("team=web, tier in (a, b),zone notin (c),vipline.dev/on,!legacy,x!=y,e==f,empty="),
            [
                part("team", "In", &["web"]),
                part("tier", "In", &["a", "b"]),
                part("zone", "NotIn", &["c"]),
                part("vipline.dev/on", "Exists", &[]),
                part("legacy", "DoesNotExist", &[]),
                part("x", "NotIn", &["y"]),
                part("e", "In", &["f"]),
                part("empty", "In", &[""]),
            ]
        );
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        assert_eq!(parse(""), Err(SelectorError::Empty));
        assert_eq!(parse("a=b,,c=d"), Err(SelectorError::Empty));
        assert_eq!(parse("=b"), Err(SelectorError::Key(String::new())));
        assert!(matches!(parse("a in b"), Err(SelectorError::Set(_))));
        assert!(matches!(parse("a near (b)"), Err(SelectorError::Key(_))));
        assert!(matches!(parse("a=b c"), Err(SelectorError::Value(_))));
        assert!(matches!(parse("ä=b"), Err(SelectorError::Key(_))));
    }
}
