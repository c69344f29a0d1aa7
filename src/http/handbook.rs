//! The handbook, embedded in the program and served under `/docs/handbook/` without a token.

use actix_web::{
    HttpResponse,
    web::{self, ServiceConfig},
};

use super::problem::ApiError;
use crate::domain::turn::outcome::ErrorCode;

const MARKDOWN: &str = "text/markdown; charset=utf-8";

/// The page that `/docs/handbook/` answers.
const INDEX: &str = "README.md";

macro_rules! pages {
    ($($name:literal),* $(,)?) => {
        /// Every page: its name and its text.
        const PAGES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../deploy/handbook/", $name)))),*];
    };
}

pages![
    "README.md",
    "access.md",
    "agents.md",
    "alerts.md",
    "api.md",
    "automation.md",
    "benchmarks.md",
    "cli.md",
    "clients.md",
    "configuration.md",
    "errors.md",
    "fallback.md",
    "github.md",
    "metrics.md",
    "notifications.md",
    "operations.md",
    "roles.md",
    "security.md",
    "tenants.md",
    "workspaces.md",
    "triggers.md",
];

/// Registers the pages. They are not part of the OpenAPI document.
pub(super) fn routes(table: &mut ServiceConfig) {
    table
        .service(web::redirect("/docs/handbook", "/docs/handbook/"))
        .route("/docs/handbook/", web::get().to(async || get_page(INDEX)))
        .route("/docs/handbook/{page}", web::get().to(async |page: web::Path<String>| get_page(&page)));
}

fn get_page(name: &str) -> Result<HttpResponse, ApiError> {
    let found = PAGES.iter().find(|(known, _)| *known == name);
    let (_, text) =
        found.ok_or_else(|| ApiError::new(ErrorCode::NotFound, format!("no page {name} of the handbook")))?;
    Ok(HttpResponse::Ok().content_type(MARKDOWN).body(*text))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use actix_web::{App, body, test as call, web::Bytes};

    use super::*;

    /// The anchors of a page, as Markdown viewers make them from headings.
    fn anchors(text: &str) -> BTreeSet<String> {
        let headings = outside_code(text).filter(|line| line.starts_with('#'));
        let anchor = |heading: &str| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
            kept.map(|it| if it == ' ' { '-' } else { it }).collect()
        };
        headings.map(anchor).collect()
    }

    fn outside_code(text: &str) -> impl Iterator<Item = &str> {
        let mut is_code = false;
        text.lines().filter(move |line| {
            let is_fence = line.starts_with("```");
            is_code ^= is_fence;
            !is_code && !is_fence
        })
    }

    fn links(text: &str) -> impl Iterator<Item = &str> {
        outside_code(text).flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split(')').next()))
    }

    #[actix_web::test]
    async fn every_page_is_served_as_markdown() {
        let app = call::init_service(App::new().configure(routes)).await;
        for (name, text) in PAGES.iter().chain([&("", PAGES[0].1)]) {
            let request = call::TestRequest::with_uri(&format!("/docs/handbook/{name}")).to_request();
            let answer = call::call_service(&app, request).await;
            assert_eq!(answer.status(), 200, "{name}");
            assert_eq!(answer.headers().get("content-type").unwrap(), MARKDOWN);
            assert_eq!(body::to_bytes(answer.into_body()).await.unwrap(), Bytes::from_static(text.as_bytes()));
        }
        let request = call::TestRequest::with_uri("/docs/handbook/nothing.md").to_request();
        assert_eq!(call::call_service(&app, request).await.status(), 404);
    }

    #[test]
    fn every_file_of_the_handbook_is_a_page() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/handbook");
        let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        let files: BTreeSet<_> = files.filter(|name| name.ends_with(".md")).collect();
        assert_eq!(files, PAGES.iter().map(|(name, _)| (*name).to_owned()).collect());
    }

    #[test]
    fn every_link_between_pages_leads_to_a_page_and_an_anchor() {
        for (name, text) in PAGES {
            for link in links(text).filter(|link| !link.contains("://")) {
                let (page, anchor) = link.split_once('#').unwrap_or((link, ""));
                let page = if page.is_empty() { name } else { page };
                let found = PAGES.iter().find(|(known, _)| *known == page);
                let (_, text) = found.unwrap_or_else(|| panic!("{name} links to {link}"));
                assert!(anchor.is_empty() || anchors(text).contains(anchor), "{name} links to {link}");
            }
        }
    }
}
