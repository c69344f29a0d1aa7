//! Parses the Prometheus text format.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scrape {
    samples: Vec<Sample>,
    /// The type of each family.
    pub types: BTreeMap<String, String>,
    /// The scraped text.
    pub text: String,
}

/// One sample.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Its name, including a `_bucket`, `_sum` or `_count` suffix.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Scrape {
    /// Parses a scrape; fails the test if a line is neither a comment nor a sample.
    pub(crate) fn parse(text: &str) -> Self {
        let mut scrape = Self { text: text.to_owned(), ..Self::default() };
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type line has a name and a type");
                scrape.types.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                scrape.samples.push(sample(line));
            }
        }
        scrape
    }

    /// The sum of all samples of this name whose labels include `labels`; 0 if there is no such sample.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// Whether a sample of this name has labels that include `labels`.
    pub(crate) fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    /// All samples.
    pub(crate) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|it| it == value))
        })
    }
}

fn sample(line: &str) -> Sample {
    let (head, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
    let value = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
    let Some((name, labels)) = head.split_once('{') else {
        return Sample { name: head.to_owned(), labels: BTreeMap::new(), value };
    };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("labels without an end: {line}"));
    // Label values are domain enums and version strings, which contain no quote and no comma.
    let labels = labels
        .split("\",")
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("not a label: {line}"));
            (key.to_owned(), value.trim_end_matches('"').to_owned())
        })
        .collect();
    Sample { name: name.to_owned(), labels, value }
}

#[test]
fn scrape_is_parsed_with_and_without_labels() {
    let scrape =
        Scrape::parse("# TYPE a_total counter\na_total{x=\"1\",y=\"b c\"} 2\na_total{x=\"2\",y=\"d\"} 3\nb 0.5\n");
    assert_eq!(scrape.sum("a_total", &[]), 5.0);
    assert_eq!(scrape.sum("a_total", &[("x", "2")]), 3.0);
    assert_eq!(scrape.sum("b", &[]), 0.5);
    assert!(!scrape.has("a_total", &[("y", "z")]));
    assert_eq!(scrape.types["a_total"], "counter");
}
