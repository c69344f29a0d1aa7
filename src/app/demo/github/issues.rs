//! Issues and pull requests, which share their numbers.

use std::path::Path;

use serde_json::{Value, json};

use super::REPOSITORY;

/// The most issues and pull requests together, and the most comments of one.
const MAX_ITEMS: usize = 1000;

/// Why something is not answered or not made.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Missing,
    /// There are too many already.
    Full,
    /// An open pull request of this branch exists.
    Exists(String),
    Invalid {
        resource: &'static str,
        field: &'static str,
    },
}

/// Head and base of a pull request.
type Branches = (String, String);

struct Item {
    title: String,
    body: String,
    labels: Vec<String>,
    /// Present for a pull request.
    branches: Option<Branches>,
    is_draft: bool,
    comments: Vec<String>,
}

/// All issues and pull requests of the repository; the first has the number 1.
pub(super) struct Issues {
    /// Address of the repository's pages.
    url: String,
    items: Vec<Item>,
}

fn text_of(body: &Value, name: &str) -> String {
    body[name].as_str().unwrap_or_default().to_owned()
}

impl Issues {
    pub(super) fn new(origin: &str) -> Self {
        Self { url: format!("{origin}/{REPOSITORY}"), items: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    fn find(&self, number: &str) -> Result<(usize, &Item), Refused> {
        let index = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1)).ok_or(Refused::Missing)?;
        self.items.get(index).map(|item| (index, item)).ok_or(Refused::Missing)
    }

    /// Opens an issue, or a pull request for two branches.
    pub(super) fn open(&mut self, body: &Value, branches: Option<Branches>) -> Result<Value, Refused> {
        let title = text_of(body, "title");
        if title.trim().is_empty() {
            return Err(Refused::Invalid { resource: "Issue", field: "title" });
        }
        if let Some((head, _)) = &branches
            && self.items.iter().any(|item| item.branches.as_ref().is_some_and(|(other, _)| other == head))
        {
            return Err(Refused::Exists(head.clone()));
        }
        if self.items.len() >= MAX_ITEMS {
            return Err(Refused::Full);
        }
        self.items.push(Item {
            title,
            body: text_of(body, "body"),
            labels: names(&body["labels"]),
            branches,
            is_draft: body["draft"] == true,
            comments: Vec::new(),
        });
        Ok(self.shown(self.items.len() - 1))
    }

    /// An issue or a pull request; only the latter with `is_pull`.
    pub(super) fn get(&self, number: &str, is_pull: bool) -> Result<Value, Refused> {
        let (index, item) = self.find(number)?;
        if is_pull && item.branches.is_none() { Err(Refused::Missing) } else { Ok(self.shown(index)) }
    }

    /// Changes title and body of a pull request.
    pub(super) fn change(&mut self, number: &str, body: &Value) -> Result<Value, Refused> {
        let (index, _) = self.find(number)?;
        let item = &mut self.items[index];
        for (name, text) in [("title", &mut item.title), ("body", &mut item.body)] {
            if let Some(new) = body[name].as_str() {
                *text = new.to_owned();
            }
        }
        Ok(self.shown(index))
    }

    /// Adds labels, and returns all of them.
    pub(super) fn label(&mut self, number: &str, body: &Value) -> Result<Value, Refused> {
        let (index, _) = self.find(number)?;
        let labels = &mut self.items[index].labels;
        for label in names(&body["labels"]) {
            if !labels.contains(&label) && labels.len() < MAX_ITEMS {
                labels.push(label);
            }
        }
        Ok(labels.iter().map(|name| json!({"name": name})).collect())
    }

    /// All issues and pull requests, the newest first.
    pub(super) fn list(&self) -> Value {
        (0..self.items.len()).rev().map(|index| self.shown(index)).collect()
    }

    /// The pull requests, of a head such as `demo:topic`.
    pub(super) fn pulls(&self, head: Option<&str>) -> Value {
        let head = head.and_then(|head| head.split_once(':')).map(|(_, branch)| branch);
        let is_wanted =
            |item: &Item| item.branches.as_ref().is_some_and(|(of, _)| head.is_none_or(|head| head == of));
        let found = self.items.iter().enumerate().rev().filter(|(_, item)| is_wanted(item));
        found.map(|(index, _)| self.shown(index)).collect()
    }

    pub(super) fn comments(&self, number: &str) -> Result<Value, Refused> {
        let (index, item) = self.find(number)?;
        Ok((0..item.comments.len()).map(|comment| self.shown_comment(index, comment)).collect())
    }

    pub(super) fn comment(&mut self, number: &str, body: &Value) -> Result<Value, Refused> {
        let (index, item) = self.find(number)?;
        if item.comments.len() >= MAX_ITEMS {
            return Err(Refused::Full);
        }
        self.items[index].comments.push(text_of(body, "body"));
        Ok(self.shown_comment(index, self.items[index].comments.len() - 1))
    }

    fn address(&self, index: usize) -> String {
        let kind = if self.items[index].branches.is_some() { "pull" } else { "issues" };
        format!("{}/{kind}/{}", self.url, index + 1)
    }

    fn shown_comment(&self, index: usize, comment: usize) -> Value {
        let url = format!("{}#comment-{}", self.address(index), comment + 1);
        json!({"id": comment + 1, "html_url": url, "body": self.items[index].comments[comment], "user": {"login": "demo"}})
    }

    fn shown(&self, index: usize) -> Value {
        let item = &self.items[index];
        let labels: Value = item.labels.iter().map(|name| json!({"name": name})).collect();
        let mut shown = json!({
            "id": index + 1, "number": index + 1, "html_url": self.address(index), "state": "open", "title": item.title,
            "body": item.body, "labels": labels, "assignees": [], "user": {"id": 1, "login": "demo"},
        });
        if let Some((head, base)) = &item.branches {
            let repository = json!({"full_name": REPOSITORY});
            shown["head"] = json!({"ref": head, "repo": repository});
            shown["base"] = json!({"ref": base, "repo": repository});
            shown["pull_request"] = json!({"html_url": self.address(index)});
            shown["draft"] = json!(item.is_draft);
            shown["merged"] = json!(false);
            shown["requested_reviewers"] = json!([]);
        }
        shown
    }

    /// A page with the addresses of all issues and pull requests.
    pub(super) fn overview(&self, folder: &Path) -> String {
        let lines =
            (0..self.items.len()).map(|index| format!("{}  {}\n", self.address(index), self.items[index].title));
        format!("{REPOSITORY}, a bare repository in {}\n\n{}", folder.display(), lines.collect::<String>())
    }

    /// The page of an issue or a pull request, with the branches of the latter.
    pub(super) fn page(&self, number: &str) -> Result<(String, Option<Branches>), Refused> {
        let (index, item) = self.find(number)?;
        let kind = match &item.branches {
            Some((head, base)) => format!("Pull request {}: {head} into {base}", index + 1),
            None => format!("Issue {}", index + 1),
        };
        let labels =
            if item.labels.is_empty() { String::new() } else { format!("\nLabels: {}", item.labels.join(", ")) };
        let comments = item.comments.iter().map(|comment| format!("\n--- Comment ---\n\n{comment}\n"));
        let text = format!("{kind}\n{}{labels}\n\n{}\n{}", item.title, item.body, comments.collect::<String>());
        Ok((text, item.branches.clone()))
    }
}

/// The names of labels, which are texts or objects.
fn names(labels: &Value) -> Vec<String> {
    let name = |label: &Value| label.as_str().or_else(|| label["name"].as_str()).map(str::to_owned);
    labels.as_array().into_iter().flatten().filter_map(name).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_pull_request_of_a_branch_is_refused_and_numbers_are_shared() {
        let mut issues = Issues::new("http://127.0.0.1:1");
        let issue = issues.open(&json!({"title": "a", "labels": ["x"]}), None).unwrap();
        let branches = || Some(("topic".to_owned(), "main".to_owned()));
        let pull = issues.open(&json!({"title": "b", "draft": true}), branches()).unwrap();
        assert_eq!((&issue["number"], &pull["number"], &pull["draft"]), (&json!(1), &json!(2), &json!(true)));
        assert_eq!(pull["html_url"], "http://127.0.0.1:1/demo/hello/pull/2");
        assert_eq!(issues.open(&json!({"title": "c"}), branches()), Err(Refused::Exists("topic".into())));
        assert_eq!(issues.pulls(Some("demo:topic")).as_array().unwrap().len(), 1);
        assert_eq!(issues.pulls(Some("demo:other")), json!([]));
        assert_eq!(issues.get("1", true), Err(Refused::Missing), "an issue is no pull request");
        assert_eq!(issues.get("3", false), Err(Refused::Missing));
        assert_eq!(issues.get("0", false), Err(Refused::Missing));
        assert_eq!(
            issues.open(&json!({"title": " "}), None),
            Err(Refused::Invalid { resource: "Issue", field: "title" })
        );
    }

    #[test]
    fn comments_and_labels_are_added_once_each() {
        let mut issues = Issues::new("http://127.0.0.1:1");
        issues.open(&json!({"title": "a"}), None).unwrap();
        issues.comment("1", &json!({"body": "well done"})).unwrap();
        let labels = json!({"labels": ["x", {"name": "y"}]});
        issues.label("1", &labels).unwrap();
        assert_eq!(issues.label("1", &labels).unwrap(), json!([{"name": "x"}, {"name": "y"}]));
        assert_eq!(issues.comments("1").unwrap()[0]["body"], "well done");
        let (page, branches) = issues.page("1").unwrap();
        assert!(page.contains("Labels: x, y") && page.contains("well done") && branches.is_none(), "{page}");
    }
}
