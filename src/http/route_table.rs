//! The routes as a table: which methods a path takes, and the label of a route in metrics and log.

use std::collections::HashMap;

use actix_web::http::Method;
use utoipa::openapi::OpenApi;

use super::openapi;
use crate::{
    domain::access::Privilege,
    telemetry::{labels::HttpMethod, metrics::http::HttpOperation},
};

/// Label of requests whose path is unknown.
pub(crate) const UNMATCHED: &str = "unmatched";

/// Routes that are not operations of the API. One that ends with `{page}` takes every path below it.
const PAGES: [&str; 4] = ["/", "/docs", "/docs/{page}", "/openapi.json"];
const REST: &str = "{page}";

/// Every route. A path matches one template, because templates differ in a fixed part.
#[derive(Debug)]
pub(crate) struct RouteTable {
    routes: Vec<KnownRoute>,
    /// Routes without parameters, by path.
    exact: HashMap<String, usize>,
    operations: Vec<HttpOperation>,
    /// The privilege that each operation needs, in the order of `operations`; `None` for one that needs no token.
    privileges: Vec<Option<Privilege>>,
}

/// The methods of one template.
#[derive(Debug)]
pub(crate) struct KnownRoute {
    /// The template, such as `/acp/session/{id}`.
    pub template: String,
    /// The methods with the index of each in [`RouteTable::operations`]; HEAD where there is GET.
    methods: Vec<(Method, usize)>,
}

impl KnownRoute {
    /// Index of the operation in [`RouteTable::operations`]; `None` if the path does not support the method.
    pub(crate) fn operation(&self, method: &Method) -> Option<usize> {
        self.methods.iter().find(|(known, _)| known == method).map(|(_, index)| *index)
    }

    /// The value of the header `Allow`.
    pub(crate) fn allow(&self) -> String {
        self.methods.iter().map(|(method, _)| method.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl RouteTable {
    /// The routes of an OpenAPI document, and the pages beside them.
    pub(crate) fn new(document: &OpenApi) -> Self {
        let mut table =
            Self { routes: Vec::new(), exact: HashMap::new(), operations: Vec::new(), privileges: Vec::new() };
        for (template, item) in &document.paths.paths {
            let has = [
                (Method::GET, &item.get),
                (Method::HEAD, &item.get),
                (Method::POST, &item.post),
                (Method::PUT, &item.put),
                (Method::PATCH, &item.patch),
                (Method::DELETE, &item.delete),
            ];
            let methods = has.into_iter().filter_map(|(method, operation)| Some((method, operation.as_ref()?)));
            table.add(template, methods.map(|(method, operation)| (method, openapi::privilege_of(operation))));
        }
        for page in PAGES {
            table.add(page, [(Method::GET, None), (Method::HEAD, None)]);
        }
        table
    }

    fn add(&mut self, template: &str, methods: impl IntoIterator<Item = (Method, Option<Privilege>)>) {
        let mut route = KnownRoute { template: template.to_owned(), methods: Vec::new() };
        for (method, privilege) in methods {
            let label = HttpMethod::of(method.as_str());
            route.methods.push((method, self.operations.len()));
            self.operations.push(HttpOperation { method: label, route: template.to_owned() });
            self.privileges.push(privilege);
        }
        if !template.contains('{') {
            self.exact.insert(template.to_owned(), self.routes.len());
        }
        self.routes.push(route);
    }

    /// Every operation, for the labels of metrics.
    pub(crate) fn operations(&self) -> &[HttpOperation] {
        &self.operations
    }

    /// The privilege that an operation needs; `None` if it needs no token.
    pub(crate) fn privilege(&self, operation: usize) -> Option<Privilege> {
        self.privileges.get(operation).copied().flatten()
    }

    /// The route of a path; `None` for an unknown path.
    pub(crate) fn find(&self, path: &str) -> Option<&KnownRoute> {
        let exact = self.exact.get(path).and_then(|index| self.routes.get(*index));
        exact.or_else(|| self.routes.iter().find(|route| matches(&route.template, path)))
    }
}

/// True if a path matches a template such as `/acp/session/{id}`.
fn matches(template: &str, path: &str) -> bool {
    let (mut template, mut path) = (template.split('/'), path.split('/'));
    loop {
        match (template.next(), path.next()) {
            (None, None) => return true,
            (Some(REST), Some(_)) => return true,
            (Some(part), Some(given)) if part == given || (part.starts_with('{') && !given.is_empty()) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_matches_only_its_template() {
        assert!(matches("/acp/session/{id}", "/acp/session/7"));
        assert!(!matches("/acp/session/{id}", "/acp/session/"));
        assert!(!matches("/acp/session/{id}", "/acp/session/7/diff"));
        assert!(matches("/docs/{page}", "/docs/") && matches("/docs/{page}", "/docs/handbook/api.md"));
        assert!(!matches("/docs/{page}", "/docs") && !matches("/docs/{page}", "/other/x"));
    }

    #[test]
    fn every_route_has_its_methods_and_head_beside_get() {
        let table = RouteTable::new(&crate::http::document());
        let allow = |path: &str| table.find(path).map(KnownRoute::allow);
        assert_eq!(allow("/acp/sessions").as_deref(), Some("GET, HEAD"));
        assert_eq!(allow("/acp/session/new").as_deref(), Some("POST"));
        assert_eq!(allow("/acp/workspaces/a/protocol").as_deref(), Some("GET, HEAD, PUT"));
        assert_eq!(allow("/docs/").as_deref(), Some("GET, HEAD"));
        assert!(table.find("/acp/nothing").is_none() && table.find("").is_none());
        let labels = table.operations().iter().map(|it| it.route.as_str());
        assert!(
            labels.clone().all(|route| route != UNMATCHED && !route.contains(':')),
            "{:?}",
            labels.collect::<Vec<_>>()
        );
    }
}
