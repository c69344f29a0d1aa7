//! The mode, the model and the options of a session's agent: what the agent offers, what was chosen, and the calls that
//! bring a fresh agent to the same choices.
//!
//! An agent has one mode. It offers modes as `modes`, as a configuration option of the category `mode`, or as both, and
//! the same holds for models. Where it offers both, each change of one is a change of the other.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use crate::domain::{
    redaction::Redacted,
    turn::outcome::{ErrorCode, Failure},
};

/// Options of one session that are kept, at most; agents offer fewer than ten.
const MAX_OPTIONS: usize = 64;
/// The longest id or value that is kept, in bytes.
const MAX_VALUE_BYTES: usize = 1024;
/// Calls for one choice during a re-application: a later call may reset what an earlier one set.
const MAX_TRIES: u8 = 2;

/// `modes`, `models` and `configOptions` of an agent, with their current values.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Offers {
    /// ACP `modes`, with `currentModeId`.
    pub modes: Option<Value>,
    /// ACP `models` (unstable), with `currentModelId`.
    pub models: Option<Value>,
    /// ACP `configOptions`, each with `currentValue`.
    pub options: Option<Value>,
}

/// A call that changes the agent's mode, model or one option.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Setting {
    /// `session/set_model` with this id.
    Model(String),
    /// `session/set_config_option`.
    Option {
        id: String,
        /// A string or a boolean.
        value: Value,
    },
    /// `session/set_mode` with this id.
    Mode(String),
}

impl Setting {
    /// The call in a few words, for notes and diagnostics.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Model(id) => format!("model {id:?}"),
            Self::Mode(id) => format!("mode {id:?}"),
            Self::Option { id, value } => format!("option {id:?} = {value}"),
        }
    }

    /// Checks that the choice can be kept.
    ///
    /// # Errors
    /// `invalid_request` for an id or value that is longer than 1 KiB or has the shape of a secret.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let (id, value) = match self {
            Self::Model(id) | Self::Mode(id) => (id.as_str(), None),
            Self::Option { id, value } => (id.as_str(), Some(value)),
        };
        if is_kept_text(id) && value.is_none_or(is_kept) {
            return Ok(());
        }
        let detail = format!("ids and values have at most {MAX_VALUE_BYTES} bytes and cannot look like a secret");
        Err(Failure::new(ErrorCode::InvalidRequest, detail))
    }
}

fn is_kept_text(text: &str) -> bool {
    text.len() <= MAX_VALUE_BYTES && Redacted::new(text).as_str() == text
}

/// True for a value that can be kept: a boolean, or a short text that is no secret.
fn is_kept(value: &Value) -> bool {
    value.is_boolean() || value.as_str().is_some_and(is_kept_text)
}

fn read(raw: Option<&RawValue>) -> Option<Value> {
    let value: Value = serde_json::from_str(raw?.get()).ok()?;
    (!value.is_null()).then_some(value)
}

fn text_of<'a>(value: Option<&'a Value>, member: &str) -> Option<&'a str> {
    value?.get(member)?.as_str()
}

/// The ids in a list of objects; `None` without a list.
fn ids_in<'a>(value: Option<&'a Value>, list: &str, id: &str) -> Option<Vec<&'a str>> {
    let list = value?.get(list)?.as_array()?;
    Some(list.iter().filter_map(|entry| entry.get(id)?.as_str()).collect())
}

/// The values of a select option, also those in groups; `None` for another type.
fn values_of(option: &Value) -> Option<Vec<&str>> {
    let listed = option.get("options")?.as_array()?;
    let grouped = listed.iter().filter_map(|entry| entry.get("options")?.as_array()).flatten();
    Some(listed.iter().chain(grouped).filter_map(|entry| entry.get("value")?.as_str()).collect())
}

impl Offers {
    /// Reads what an agent sent. Null counts as absent, and malformed members are ignored when they are used.
    pub(crate) fn read(modes: Option<&RawValue>, models: Option<&RawValue>, options: Option<&RawValue>) -> Self {
        Self { modes: read(modes), models: read(models), options: read(options) }
    }

    /// Reads them from the facts of an agent as the session's row has them.
    pub(crate) fn of_facts(facts: &str) -> Self {
        let mut facts: Value = serde_json::from_str(facts).unwrap_or_default();
        let mut member = |name: &str| facts.get_mut(name).map(Value::take).filter(|value| !value.is_null());
        Self { modes: member("modes"), models: member("models"), options: member("configOptions") }
    }

    /// Takes what is absent from `earlier`: an agent that loads a conversation may repeat nothing.
    pub(crate) fn or(self, earlier: &Self) -> Self {
        Self {
            modes: self.modes.or_else(|| earlier.modes.clone()),
            models: self.models.or_else(|| earlier.models.clone()),
            options: self.options.or_else(|| earlier.options.clone()),
        }
    }

    /// The same with the values of `choices`, for an agent that does not run.
    pub(crate) fn with(mut self, choices: &Choices) -> Self {
        for setting in choices.settings(&self) {
            self.set(&setting);
        }
        self
    }

    /// The agent's mode; `None` if it has not reported one.
    pub(crate) fn mode(&self) -> Option<&str> {
        text_of(self.modes.as_ref(), "currentModeId").or_else(|| text_of(self.option_of("mode"), "currentValue"))
    }

    fn model(&self) -> Option<&str> {
        text_of(self.models.as_ref(), "currentModelId")
    }

    /// The current values, for an event: `modeId`, `modelId` and `options` by id.
    pub(crate) fn values_as_json(&self) -> Value {
        let options: BTreeMap<&str, &Value> = self.values().collect();
        json!({"modeId": self.mode(), "modelId": self.model(), "options": options})
    }

    fn list(&self) -> impl Iterator<Item = &Value> {
        self.options.as_ref().and_then(Value::as_array).into_iter().flatten()
    }

    fn option(&self, id: &str) -> Option<&Value> {
        self.list().find(|option| option["id"] == id)
    }

    fn option_of(&self, category: &str) -> Option<&Value> {
        self.list().find(|option| option["category"] == category)
    }

    fn is_mode_option(&self, id: &str) -> bool {
        self.option(id).is_some_and(|option| option["category"] == "mode")
    }

    /// The current values of the options other than the mode.
    fn values(&self) -> impl Iterator<Item = (&str, &Value)> {
        let others = self.list().filter(|option| option["category"] != "mode");
        others.filter_map(|option| Some((option.get("id")?.as_str()?, option.get("currentValue")?)))
    }

    /// The call that selects a mode.
    fn mode_setting(&self, mode: &str) -> Setting {
        let option = self.option_of("mode").filter(|_| self.modes.is_none()).and_then(|option| option["id"].as_str());
        match option {
            Some(id) => Setting::Option { id: id.to_owned(), value: json!(mode) },
            None => Setting::Mode(mode.to_owned()),
        }
    }

    /// False if the agent has listed its values and this is none of them.
    fn may_take(&self, setting: &Setting) -> bool {
        let lists = |listed: Option<Vec<&str>>, id: &str| listed.is_none_or(|listed| listed.contains(&id));
        match setting {
            Setting::Mode(id) => lists(ids_in(self.modes.as_ref(), "availableModes", "id"), id),
            Setting::Model(id) => lists(ids_in(self.models.as_ref(), "availableModels", "modelId"), id),
            Setting::Option { id, value } => match (self.option(id), value.as_str()) {
                (Some(option), Some(value)) => lists(values_of(option), value),
                (Some(option), None) => option["type"] == "boolean",
                (None, _) => self.options.is_none(),
            },
        }
    }

    fn has(&self, setting: &Setting) -> bool {
        match setting {
            Setting::Mode(id) => self.mode() == Some(id.as_str()),
            Setting::Model(id) => self.model() == Some(id.as_str()),
            Setting::Option { id, value } => {
                self.option(id).is_some_and(|option| option.get("currentValue") == Some(value))
            }
        }
    }

    /// Takes over a setting that the agent has confirmed.
    pub(crate) fn set(&mut self, setting: &Setting) {
        match setting {
            Setting::Mode(id) => self.set_mode(id),
            Setting::Model(id) => self.set_model(id),
            Setting::Option { id, value } => self.set_option(id, value),
        }
    }

    /// Takes over the answer to a setting that the agent has confirmed: it may have all options.
    pub(crate) fn on_answer(&mut self, setting: &Setting, answer: &RawValue) {
        self.set(setting);
        let answer: Value = serde_json::from_str(answer.get()).unwrap_or_default();
        if let Some(options) = answer.get("configOptions").filter(|options| options.is_array()) {
            self.take_options(options.clone());
        }
    }

    /// Takes over an update of the agent. Returns false if it is not about modes or options, or malformed.
    pub(crate) fn on_update(&mut self, update: &RawValue) -> bool {
        let update: Value = serde_json::from_str(update.get()).unwrap_or_default();
        match (update["sessionUpdate"].as_str(), update["currentModeId"].as_str(), update.get("configOptions")) {
            (Some("current_mode_update"), Some(mode), _) => self.set_mode(mode),
            (Some("config_option_update"), _, Some(options)) if options.is_array() => {
                self.take_options(options.clone());
            }
            _ => return false,
        }
        true
    }

    fn set_mode(&mut self, mode: &str) {
        if self.modes.is_some() || self.option_of("mode").is_none() {
            set_member(&mut self.modes, "currentModeId", mode);
        }
        self.mirror("mode", mode);
    }

    fn set_model(&mut self, model: &str) {
        set_member(&mut self.models, "currentModelId", model);
        self.mirror("model", model);
    }

    fn set_option(&mut self, id: &str, value: &Value) {
        for option in self.options.as_mut().and_then(Value::as_array_mut).into_iter().flatten() {
            if option["id"] == id && option.is_object() {
                option["currentValue"] = value.clone();
            }
        }
        self.follow_options();
    }

    fn take_options(&mut self, options: Value) {
        self.options = Some(options);
        self.follow_options();
    }

    /// Sets the option of a category to the value of the selector beside it, if it has that value.
    fn mirror(&mut self, category: &str, chosen: &str) {
        for option in self.options.as_mut().and_then(Value::as_array_mut).into_iter().flatten() {
            let takes = values_of(option).is_some_and(|values| values.contains(&chosen));
            if option["category"] == category && takes {
                option["currentValue"] = json!(chosen);
            }
        }
    }

    /// Sets `modes` and `models` to the values of the options beside them, if they have these values.
    fn follow_options(&mut self) {
        let chosen = |category: &str| text_of(self.option_of(category), "currentValue").map(str::to_owned);
        let (mode, model) = (chosen("mode"), chosen("model"));
        let lists = |of: Option<&Value>, list: &str, id: &str, chosen: &str| {
            ids_in(of, list, id).is_some_and(|listed| listed.contains(&chosen))
        };
        if let Some(mode) = mode.filter(|mode| lists(self.modes.as_ref(), "availableModes", "id", mode)) {
            set_member(&mut self.modes, "currentModeId", &mode);
        }
        if let Some(model) = model.filter(|model| lists(self.models.as_ref(), "availableModels", "modelId", model)) {
            set_member(&mut self.models, "currentModelId", &model);
        }
    }
}

fn set_member(of: &mut Option<Value>, member: &str, text: &str) {
    match of {
        Some(value) if value.is_object() => value[member] = json!(text),
        _ => *of = Some(json!({ member: text })),
    }
}

/// The origin of a choice. A choice keeps the highest origin that it ever had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// The agent reported it in its first handshake.
    Handshake,
    /// The agent changed it by itself.
    Agent,
    /// A user set it, now or earlier. Also a word of a newer version, as the strictest reading.
    #[serde(other)]
    User,
}

/// A confirmed value and its origin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Choice {
    /// A string or a boolean.
    pub value: Value,
    pub by: Origin,
}

/// The last confirmed mode, model and options of a session: what a fresh agent gets before its first prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Choices {
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<Choice>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    options: BTreeMap<String, Choice>,
}

impl Choices {
    /// Reads them from the session's row. An unreadable value counts as no choice.
    pub(crate) fn of_row(kept: Option<&str>) -> Self {
        kept.and_then(|kept| serde_json::from_str(kept).ok()).unwrap_or_default()
    }

    /// The JSON for the session's row.
    pub(crate) fn as_json(&self) -> String {
        json!(self).to_string()
    }

    /// True if nothing was changed since the first handshake, so that a fresh agent has the choices already.
    pub(crate) fn are_initial(&self) -> bool {
        let all = self.mode.iter().chain(&self.model).chain(self.options.values());
        all.into_iter().all(|choice| choice.by == Origin::Handshake)
    }

    /// The mode, if a user set one: the session must not run a turn in another one.
    pub(crate) fn mode_of_user(&self) -> Option<&str> {
        self.mode.as_ref().filter(|mode| mode.by == Origin::User)?.value.as_str()
    }

    /// Records the agent's current values. `by` is the origin of those that differ from the kept ones, and of `set`, the
    /// setting that was confirmed. Options that the agent no longer offers are removed. With `keep_mode` the kept mode
    /// stays. Returns true if something changed.
    pub(crate) fn confirm(&mut self, offers: &Offers, by: Origin, set: Option<&Setting>, keep_mode: bool) -> bool {
        let before = self.clone();
        if let Some(mode) = offers.mode().filter(|_| !keep_mode) {
            let is_set = match set {
                Some(Setting::Mode(_)) => true,
                Some(Setting::Option { id, .. }) => offers.is_mode_option(id),
                Some(Setting::Model(_)) | None => false,
            };
            confirm(&mut self.mode, &json!(mode), by, is_set);
        }
        if let Some(model) = offers.model() {
            confirm(&mut self.model, &json!(model), by, matches!(set, Some(Setting::Model(_))));
        }
        if offers.options.is_some() {
            let offered: BTreeSet<&str> = offers.values().map(|(id, _)| id).collect();
            self.options.retain(|id, _| offered.contains(id.as_str()));
        }
        for (id, value) in offers.values().filter(|(id, _)| is_kept_text(id)).take(MAX_OPTIONS) {
            let is_set = matches!(set, Some(Setting::Option { id: of, .. }) if of == id);
            let mut choice = self.options.remove(id);
            confirm(&mut choice, value, by, is_set);
            self.options.extend(choice.map(|choice| (id.to_owned(), choice)));
        }
        *self != before
    }

    /// Adds what a fresh agent reports and what is not kept yet; kept values stay.
    pub(crate) fn complete(&mut self, offers: &Offers) {
        let mut reported = Self::default();
        reported.confirm(offers, Origin::Handshake, None, false);
        self.mode = self.mode.take().or(reported.mode);
        self.model = self.model.take().or(reported.model);
        for (id, choice) in reported.options {
            self.options.entry(id).or_insert(choice);
        }
    }

    /// The calls for all choices, in the order in which an agent gets them: the model first, because it may reset
    /// options; the mode last, because nothing may reset it.
    fn settings(&self, offers: &Offers) -> Vec<Setting> {
        let text = |choice: &Choice| choice.value.as_str().map(str::to_owned);
        let model = self.model.as_ref().and_then(text).map(Setting::Model);
        let options =
            self.options.iter().map(|(id, choice)| Setting::Option { id: id.clone(), value: choice.value.clone() });
        let mode = self.mode.as_ref().and_then(text).map(|mode| offers.mode_setting(&mode));
        model.into_iter().chain(options).chain(mode).collect()
    }

    /// The calls for the mode and for what was changed since the first handshake, for an agent whose state is unknown.
    pub(crate) fn settings_to_restore(&self, offers: &Offers) -> Vec<Setting> {
        let mode = self.mode.as_ref().and_then(|mode| mode.value.as_str()).map(|mode| offers.mode_setting(mode));
        let is_mode = |setting: &Setting| mode.as_ref() == Some(setting);
        let settings = self.settings(offers);
        settings.into_iter().filter(|it| is_mode(it) || self.origin(it, offers) > Origin::Handshake).collect()
    }

    /// The calls for the choices that were changed since the first handshake.
    pub(crate) fn changed_settings(&self, offers: &Offers) -> Vec<Setting> {
        let settings = self.settings(offers);
        settings.into_iter().filter(|setting| self.origin(setting, offers) > Origin::Handshake).collect()
    }

    fn origin(&self, setting: &Setting, offers: &Offers) -> Origin {
        let choice = match setting {
            Setting::Mode(_) => self.mode.as_ref(),
            Setting::Option { id, .. } if offers.is_mode_option(id) => self.mode.as_ref(),
            Setting::Model(_) => self.model.as_ref(),
            Setting::Option { id, .. } => self.options.get(id),
        };
        choice.map_or(Origin::Handshake, |choice| choice.by)
    }
}

fn confirm(kept: &mut Option<Choice>, value: &Value, by: Origin, is_set: bool) {
    if !is_kept(value) {
        return;
    }
    let earlier = kept.as_ref().map(|kept| kept.by);
    let is_same = kept.as_ref().is_some_and(|kept| kept.value == *value);
    // An answer to a user's setting may report other changes, which are the agent's own.
    let by = if is_set { by } else { by.min(Origin::Agent) };
    let by = match earlier {
        Some(earlier) if is_same && !is_set => earlier,
        Some(earlier) => earlier.max(by),
        None => by,
    };
    *kept = Some(Choice { value: value.clone(), by });
}

/// Decides which calls bring a fresh agent to the kept choices.
#[derive(Debug)]
pub(crate) struct Reapplication {
    choices: Choices,
    offers: Offers,
    tries: Vec<(Setting, u8)>,
    applied: Vec<Setting>,
    failed: Vec<(Setting, String)>,
    /// An option or model call was not answered, so that only the mode is tried after it.
    is_silent: bool,
}

/// The result of a re-application.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reapplied {
    /// Calls that the agent has confirmed.
    pub applied: Vec<Setting>,
    /// Choices that the agent does not have, with the reason.
    pub failed: Vec<(Setting, String)>,
    /// The reason why the mode that a user set is not the agent's mode.
    pub mode_unavailable: Option<String>,
}

impl Reapplication {
    /// Begins with an agent that has just reported `offers`.
    pub(crate) fn new(choices: Choices, offers: Offers) -> Self {
        let (tries, applied, failed) = Default::default();
        Self { choices, offers, tries, applied, failed, is_silent: false }
    }

    /// The next call; `None` when no call is left.
    pub(crate) fn next_call(&mut self) -> Option<Setting> {
        for setting in self.choices.settings(&self.offers) {
            let is_known = self.failed.iter().any(|(failed, _)| *failed == setting);
            if is_known || self.offers.has(&setting) {
                continue;
            }
            let (origin, is_mode) = (self.choices.origin(&setting, &self.offers), self.is_mode(&setting));
            if !self.may_call(&setting, origin) {
                if origin > Origin::Handshake || is_mode {
                    self.failed.push((setting, "the agent does not offer it".into()));
                }
                continue;
            }
            if self.is_silent && !is_mode {
                self.failed.push((setting, "the agent has not answered an earlier call".into()));
                continue;
            }
            match self.tries.iter_mut().find(|(tried, _)| *tried == setting) {
                Some((_, tries)) if *tries >= MAX_TRIES => {
                    self.failed.push((setting, "the agent confirmed it and then reported another value".into()));
                    continue;
                }
                Some((_, tries)) => *tries += 1,
                None => self.tries.push((setting.clone(), 1)),
            }
            return Some(setting);
        }
        None
    }

    /// True if the agent may take the setting. Without a list of its values, only a changed choice is tried.
    fn may_call(&self, setting: &Setting, origin: Origin) -> bool {
        let is_listed = match setting {
            Setting::Mode(_) => self.offers.modes.is_some(),
            Setting::Model(_) => self.offers.models.is_some(),
            Setting::Option { .. } => self.offers.options.is_some(),
        };
        if is_listed { self.offers.may_take(setting) } else { origin > Origin::Handshake }
    }

    fn is_mode(&self, setting: &Setting) -> bool {
        match setting {
            Setting::Mode(_) => true,
            Setting::Option { id, .. } => self.offers.is_mode_option(id),
            Setting::Model(_) => false,
        }
    }

    /// The agent has confirmed a call.
    pub(crate) fn confirmed(&mut self, setting: Setting, answer: &RawValue) {
        self.offers.on_answer(&setting, answer);
        if !self.applied.contains(&setting) {
            self.applied.push(setting);
        }
    }

    /// The agent has refused a call.
    pub(crate) fn refused(&mut self, setting: Setting, cause: &str) {
        self.failed.push((setting, format!("the agent refused it: {cause}")));
    }

    /// The agent has not answered a call in time.
    pub(crate) fn unanswered(&mut self, setting: Setting) {
        self.is_silent = true;
        self.failed.push((setting, "the agent did not answer".into()));
    }

    /// The agent has sent an update. Returns true if it is about modes or options.
    pub(crate) fn on_update(&mut self, update: &RawValue) -> bool {
        self.offers.on_update(update)
    }

    /// Ends the re-application.
    pub(crate) fn finish(mut self) -> (Offers, Reapplied) {
        let mode_unavailable = self.choices.mode_of_user().and_then(|mode| {
            if self.offers.mode() == Some(mode) {
                return None;
            }
            let setting = self.offers.mode_setting(mode);
            let failed = self.failed.iter().find(|(failed, _)| *failed == setting);
            let cause = failed.map_or("the agent has another mode", |(_, cause)| cause.as_str());
            Some(mode_unavailable_because(mode, cause))
        });
        let failed = &self.failed;
        self.applied.retain(|applied| !failed.iter().any(|(failed, _)| failed == applied));
        (self.offers, Reapplied { applied: self.applied, failed: self.failed, mode_unavailable })
    }
}

/// The kept choices of a live session, beside what its agent has now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chosen {
    choices: Choices,
    offers: Offers,
    mode_unavailable: Option<String>,
    /// True until the fresh agent of a session with a mode of a user gets its first prompt: its updates are then those
    /// of a start.
    is_starting: bool,
}

/// The effect of an update of the agent on the kept choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// The choices changed and have to be persisted.
    Changed,
    /// The agent has left the mode that a user set, before its first prompt.
    Unavailable,
}

impl Chosen {
    /// The state of a session that is loaded; `facts` are those of its row.
    pub(crate) fn of_row(choices: Choices, facts: Option<&str>) -> Self {
        let offers = facts.map(Offers::of_facts).unwrap_or_default().with(&choices);
        Self { choices, offers, ..Self::default() }
    }

    /// Modes, models and options as they are now.
    pub(crate) fn offers(&self) -> &Offers {
        &self.offers
    }

    pub(crate) fn choices(&self) -> &Choices {
        &self.choices
    }

    /// The reason why the agent does not have the mode that a user set; turns are refused meanwhile.
    pub(crate) fn mode_unavailable(&self) -> Option<&str> {
        self.mode_unavailable.as_deref()
    }

    /// A fresh agent has reported its offers after the choices were set in it.
    pub(crate) fn connected(&mut self, offers: Offers, reapplied: &Reapplied, remembers: bool) {
        self.offers = if remembers { offers.or(&self.offers) } else { offers };
        self.choices.complete(&self.offers);
        self.mode_unavailable.clone_from(&reapplied.mode_unavailable);
        self.is_starting = self.choices.mode_of_user().is_some();
    }

    /// An agent that ran all along was found again: what it offers is `offers`, and its state is that of the choices.
    pub(crate) fn adopted(&mut self, offers: Offers) {
        self.offers = offers.with(&self.choices);
        (self.mode_unavailable, self.is_starting) = (None, false);
    }

    /// Each turn has its own agent from now on, which gets the choices.
    pub(crate) fn without_agent(&mut self) {
        self.offers = std::mem::take(&mut self.offers).with(&self.choices);
        (self.mode_unavailable, self.is_starting) = (None, false);
    }

    /// The agent gets its first prompt.
    pub(crate) fn prompted(&mut self) {
        self.is_starting = false;
    }

    /// The agent has confirmed a setting of a user.
    pub(crate) fn set(&mut self, setting: &Setting, answer: &RawValue) {
        self.offers.on_answer(setting, answer);
        let sets_mode = match setting {
            Setting::Mode(_) => true,
            Setting::Option { id, .. } => self.offers.is_mode_option(id),
            Setting::Model(_) => false,
        };
        let keeps_mode = !sets_mode && self.holds_mode();
        self.is_starting &= !sets_mode;
        self.choices.confirm(&self.offers, Origin::User, Some(setting), keeps_mode);
        self.settle_mode();
    }

    /// The agent has confirmed a choice that was set in it again.
    pub(crate) fn restored(&mut self, setting: &Setting, answer: &RawValue) {
        self.offers.on_answer(setting, answer);
        self.settle_mode();
    }

    /// The agent does not take the mode that a user set.
    pub(crate) fn refused(&mut self, setting: &Setting, cause: &str) {
        let mode = self.choices.mode_of_user().filter(|mode| self.offers.mode_setting(mode) == *setting);
        if let Some(mode) = mode {
            self.mode_unavailable = Some(mode_unavailable_because(mode, cause));
        }
    }

    /// The agent has sent an update. While it does not have the mode that a user set, and until its first prompt, its
    /// mode is no choice.
    pub(crate) fn on_update(&mut self, update: &RawValue) -> Effect {
        if !self.offers.on_update(update) {
            return Effect::Nothing;
        }
        let holds_mode = self.holds_mode();
        let is_changed = self.choices.confirm(&self.offers, Origin::Agent, None, holds_mode);
        let was_unavailable = self.mode_unavailable.is_some();
        self.settle_mode();
        match self.choices.mode_of_user().filter(|mode| holds_mode && self.offers.mode() != Some(*mode)) {
            Some(_) if was_unavailable => {}
            Some(mode) => {
                self.mode_unavailable =
                    Some(mode_unavailable_because(mode, "the agent left it before the first prompt"));
                return Effect::Unavailable;
            }
            None => {}
        }
        if is_changed { Effect::Changed } else { Effect::Nothing }
    }

    fn holds_mode(&self) -> bool {
        self.mode_unavailable.is_some() || (self.is_starting && self.choices.mode_of_user().is_some())
    }

    fn settle_mode(&mut self) {
        if self.choices.mode_of_user().is_none_or(|mode| self.offers.mode() == Some(mode)) {
            self.mode_unavailable = None;
        }
    }
}

/// Describes a mode that a user set and that the agent does not have.
pub(crate) fn mode_unavailable_because(mode: &str, cause: &str) -> String {
    format!("the mode {mode:?} of the session cannot be set: {cause}")
}

/// Describes a choice that a fresh agent does not have, for a diagnostic.
pub(crate) fn not_set(setting: &Setting, cause: &str) -> String {
    format!("the {} of the session was not set again: {cause}", setting.describe())
}

/// The refusal of a turn over a headless command, if the session has a mode that a user set.
pub(crate) fn refusal_of_headless(choices: &Choices) -> Option<Failure> {
    let mode = choices.mode_of_user()?;
    let cause = "turns use the agent's headless command now, which has no modes";
    Some(Failure::new(ErrorCode::ModeUnavailable, mode_unavailable_because(mode, cause)))
}

#[cfg(test)]
mod tests;
