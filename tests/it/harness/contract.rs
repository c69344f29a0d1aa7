//! Checks responses against the program's OpenAPI document.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use super::{Value, json};

/// A program's OpenAPI document.
#[derive(Debug)]
pub(crate) struct Contract {
    document: Value,
    /// Validators by their schema, because compiling one takes far longer than checking a response.
    validators: Mutex<BTreeMap<String, Arc<jsonschema::Validator>>>,
}

/// A method and a path template of the document.
pub(crate) type Operation = (String, String);

impl Contract {
    /// Wraps a parsed document.
    pub(crate) fn new(document: Value) -> Self {
        Self { document, validators: Mutex::default() }
    }

    /// The document.
    pub(crate) fn document(&self) -> &Value {
        &self.document
    }

    /// All operations of the document.
    pub(crate) fn operations(&self) -> BTreeSet<Operation> {
        let paths = self.document["paths"].as_object().expect("`paths` is an object");
        paths
            .iter()
            .flat_map(|(path, item)| {
                let item = item.as_object().expect("a path item is an object");
                item.keys().filter(|key| is_method(key)).map(move |method| (method.to_uppercase(), path.clone()))
            })
            .collect()
    }

    /// The operation of a request; a literal segment wins over a parameter.
    pub(crate) fn operation(&self, method: &str, path: &str) -> Option<Operation> {
        let path = path.split('?').next().unwrap_or(path);
        let paths = self.document["paths"].as_object()?;
        let mut matching: Vec<_> = paths
            .iter()
            .filter(|(template, item)| item.get(method.to_lowercase()).is_some() && matches(template, path))
            .map(|(template, _)| template)
            .collect();
        matching.sort_by_key(|template| template.matches('{').count());
        Some((method.to_uppercase(), (*matching.first()?).clone()))
    }

    /// Fails the test if a response violates the document: its status, its media type, its schema, or the code of its
    /// problem. An error that the router answers has to be a `Problem`.
    pub(crate) fn check(&self, method: &str, path: &str, status: u16, media_type: &str, body: &str) {
        if path == "/openapi.json" || path.starts_with("/docs/") {
            return; // The document does not describe itself.
        }
        let place = format!("{method} {path} -> {status} {media_type}: {body}");
        let declared = self.operation(method, path).and_then(|(method, template)| {
            let responses = &self.document["paths"][template][method.to_lowercase()]["responses"];
            let range = format!("{}XX", status / 100);
            [status.to_string(), range, "default".into()].iter().find_map(|key| responses.get(key)).cloned()
        });
        let Some(response) = declared else {
            // The router answers 405, and what no operation takes.
            let is_of_router = self.operation(method, path).is_none() || status == 405;
            assert!(status >= 400 && is_of_router, "the document does not list this response: {place}");
            return self.check_schema(&json!({"$ref": "#/components/schemas/Problem"}), body, &place);
        };
        let response = self.resolve(&response);
        let Some(content) = response.get("content").and_then(Value::as_object).filter(|it| !it.is_empty()) else {
            assert!(
                body.is_empty() || !media_type.contains("json"),
                "the document lists no body for this response: {place}"
            );
            return;
        };
        let Some(content) = content.get(media_type) else {
            panic!("the document lists only {:?} for this response: {place}", content.keys().collect::<Vec<_>>());
        };
        if media_type.contains("json") {
            self.check_schema(content.get("schema").unwrap_or(&Value::Bool(true)), body, &place);
        }
        if media_type.contains("problem") {
            let code = serde_json::from_str::<Value>(body).expect("checked above")["code"].clone();
            let code = format!("`{}`", code.as_str().unwrap_or_default());
            let listed = response["description"].as_str().is_some_and(|codes| codes.contains(&code));
            assert!(listed, "the operation does not list the code {code}: {place}");
        }
    }

    /// Fails the test if a value violates the named component.
    pub(crate) fn check_component(&self, name: &str, value: &Value) {
        assert!(self.document["components"]["schemas"].get(name).is_some(), "the document has a component {name}");
        let schema = json!({"$ref": format!("#/components/schemas/{name}")});
        self.check_schema(&schema, &value.to_string(), name);
    }

    /// Whether a value conforms to the named component.
    pub(crate) fn is_component(&self, name: &str, value: &Value) -> bool {
        self.validator(&json!({"$ref": format!("#/components/schemas/{name}")})).is_valid(value)
    }

    fn check_schema(&self, schema: &Value, body: &str, place: &str) {
        let value: Value = serde_json::from_str(body).unwrap_or_else(|cause| panic!("not JSON: {cause}: {place}"));
        let faults: Vec<_> = self
            .validator(schema)
            .iter_errors(&value)
            .map(|fault| format!("{fault} at {}", fault.instance_path()))
            .collect();
        assert!(faults.is_empty(), "a response violates the document: {faults:#?}\n{place}");
    }

    fn validator(&self, schema: &Value) -> Arc<jsonschema::Validator> {
        let mut validators = self.validators.lock().expect("a lock");
        let compiled = validators.entry(schema.to_string()).or_insert_with(|| {
            let schema = json!({
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "components": self.components_of(schema),
                "allOf": [schema],
            });
            jsonschema::validator_for(&schema).unwrap_or_else(|cause| panic!("not a schema: {cause}")).into()
        });
        compiled.clone()
    }

    /// The components that a schema refers to, directly or through others.
    fn components_of(&self, schema: &Value) -> Value {
        let (mut components, mut unread) = (json!({}), references(schema));
        while let Some(reference) = unread.pop() {
            let path: Vec<_> = reference.split('/').collect();
            let ["#", "components", kind, name] = path[..] else { panic!("not a component: {reference}") };
            if components[kind].get(name).is_none() {
                let component = self.document["components"][kind].get(name);
                let component = component.unwrap_or_else(|| panic!("the document has no component {reference}"));
                unread.extend(references(component));
                components[kind][name] = component.clone();
            }
        }
        components
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str).and_then(|it| it.strip_prefix('#')) {
            Some(pointer) => self.document.pointer(pointer).expect("a reference within the document"),
            None => value,
        }
    }
}

/// Adds a word to every closed list of a document.
pub(crate) fn with_word(mut document: Value, word: &str) -> Value {
    match &mut document {
        Value::Object(members) => members.iter_mut().for_each(|(name, value)| match value {
            Value::Array(words) if name == "enum" => words.push(word.into()),
            value => *value = with_word(value.take(), word),
        }),
        Value::Array(items) => items.iter_mut().for_each(|item| *item = with_word(item.take(), word)),
        _ => {}
    }
    document
}

/// All values of `$ref` in a schema.
fn references(schema: &Value) -> Vec<&str> {
    match schema {
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| match value.as_str() {
                Some(reference) if name == "$ref" => vec![reference],
                _ => references(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

fn is_method(key: &str) -> bool {
    ["get", "put", "post", "delete", "patch", "head", "options"].contains(&key)
}

fn matches(template: &str, path: &str) -> bool {
    let (mut left, mut right) = (template.split('/'), path.split('/'));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(want), Some(have)) if want == have || (want.starts_with('{') && !have.is_empty()) => {}
            _ => return false,
        }
    }
}

#[test]
fn path_matches_its_template_and_a_literal_segment_wins() {
    let contract = Contract::new(json!({"paths": {
        "/acp/session/{id}": {"get": {}}, "/acp/session/new": {"get": {}, "post": {}}
    }}));
    let found = |path| contract.operation("GET", path).map(|(_, template)| template);
    assert_eq!(found("/acp/session/new").as_deref(), Some("/acp/session/new"));
    assert_eq!(found("/acp/session/1?x=/").as_deref(), Some("/acp/session/{id}"));
    assert_eq!(found("/acp/session"), None);
}

#[test]
fn component_check_rejects_a_value_of_another_shape() {
    let contract = Contract::new(json!({
        "components": {"schemas": {"A": {"type": "object", "required": ["b"], "properties": {"b": {"type": "string"}}}}},
        "paths": {"/a": {"get": {"responses": {"200": {"content": {"application/json":
            {"schema": {"$ref": "#/components/schemas/A"}}}}}}}}
    }));
    contract.check("GET", "/a", 200, "application/json", r#"{"b":"x"}"#);
    assert!(contract.is_component("A", &json!({"b": ""})) && !contract.is_component("A", &json!({"b": 1})));
}
