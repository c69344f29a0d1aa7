use super::*;

fn raw(value: &Value) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).unwrap()
}

/// Offers of a fresh agent: modes, models, a tone and a boolean.
fn fresh() -> Offers {
    Offers {
        modes: Some(json!({"currentModeId": "code", "availableModes": [{"id": "code"}, {"id": "plan"}]})),
        models: Some(
            json!({"currentModelId": "small", "availableModels": [{"modelId": "small"}, {"modelId": "large"}]}),
        ),
        options: Some(json!([
            {"id": "tone", "type": "select", "currentValue": "plain", "options": [{"value": "plain"}, {"value": "loud"}]},
            {"id": "fast", "type": "boolean", "currentValue": false},
        ])),
    }
}

/// An agent whose mode is an option.
fn with_mode_option() -> Offers {
    let values = json!([{"value": "code"}, {"value": "plan"}]);
    Offers {
        options: Some(
            json!([{"id": "m", "category": "mode", "type": "select", "currentValue": "code", "options": values}]),
        ),
        ..Offers::default()
    }
}

fn mode(id: &str) -> Setting {
    Setting::Mode(id.to_owned())
}

fn option(id: &str, value: Value) -> Setting {
    Setting::Option { id: id.to_owned(), value }
}

/// A session whose user has made these settings in a fresh agent.
fn chosen(offers: Offers, settings: &[Setting]) -> Chosen {
    let mut chosen = Chosen::default();
    chosen.connected(offers, &Reapplied::default(), false);
    chosen.prompted();
    settings.iter().for_each(|setting| chosen.set(setting, &raw(&json!({}))));
    chosen
}

fn mode_update(mode: &str) -> Box<RawValue> {
    raw(&json!({"sessionUpdate": "current_mode_update", "currentModeId": mode}))
}

/// Applies `choices` to an agent that answers each call with `answer`; returns the calls and the result.
fn apply(
    choices: &Choices,
    offers: Offers,
    mut answer: impl FnMut(&Setting, &mut Reapplication),
) -> (Vec<Setting>, Offers, Reapplied) {
    let (mut plan, mut calls) = (Reapplication::new(choices.clone(), offers), Vec::new());
    while let Some(setting) = plan.next_call() {
        assert!(calls.len() < 20, "the re-application ends: {calls:?}");
        answer(&setting, &mut plan);
        calls.push(setting);
    }
    let (offers, reapplied) = plan.finish();
    (calls, offers, reapplied)
}

fn obedient(setting: &Setting, plan: &mut Reapplication) {
    plan.confirmed(setting.clone(), &raw(&json!({})));
}

#[test]
fn fresh_agent_gets_model_then_options_then_mode() {
    let settings =
        [mode("plan"), option("tone", json!("loud")), option("fast", json!(true)), Setting::Model("large".into())];
    let kept = chosen(fresh(), &settings);
    let (calls, offers, reapplied) = apply(kept.choices(), fresh(), obedient);
    let expected =
        [Setting::Model("large".into()), option("fast", json!(true)), option("tone", json!("loud")), mode("plan")];
    assert_eq!(calls, expected);
    assert_eq!((offers.mode(), offers.model()), (Some("plan"), Some("large")));
    assert_eq!((reapplied.applied.len(), reapplied.failed.len(), reapplied.mode_unavailable), (4, 0, None));
}

#[test]
fn agent_that_has_the_choices_already_gets_no_call() {
    let kept = chosen(fresh(), &[mode("plan")]);
    let (calls, ..) = apply(kept.choices(), kept.offers().clone(), obedient);
    assert_eq!(calls, []);
    assert_eq!(apply(&Choices::default(), fresh(), obedient).0, []);
}

#[test]
fn option_that_the_model_resets_is_set_again() {
    let kept = chosen(fresh(), &[option("tone", json!("loud")), mode("plan")]);
    let reset = raw(&json!({"sessionUpdate": "config_option_update", "configOptions": fresh().options}));
    let mut resets = 1;
    let (calls, offers, reapplied) = apply(kept.choices(), fresh(), |setting, plan| {
        plan.confirmed(setting.clone(), &raw(&json!({})));
        if *setting == mode("plan") && resets > 0 {
            resets -= 1;
            plan.on_update(&reset);
        }
    });
    assert_eq!(calls, [option("tone", json!("loud")), mode("plan"), option("tone", json!("loud"))]);
    assert!(offers.has(&option("tone", json!("loud"))) && reapplied.failed.is_empty());
}

#[test]
fn mode_of_a_user_that_is_refused_unknown_or_unanswered_is_unavailable() {
    let kept = chosen(fresh(), &[mode("plan")]);
    let (_, offers, refused) = apply(kept.choices(), fresh(), |setting, plan| plan.refused(setting.clone(), "no"));
    assert!(refused.mode_unavailable.is_some_and(|why| why.contains("no")));
    assert_eq!(offers.mode(), Some("code"), "the agent's own mode is shown");
    let without =
        Offers { modes: Some(json!({"currentModeId": "code", "availableModes": [{"id": "code"}]})), ..fresh() };
    let (calls, _, unknown) = apply(kept.choices(), without, obedient);
    assert!(calls.is_empty() && unknown.mode_unavailable.is_some());
    let (_, _, unanswered) = apply(kept.choices(), fresh(), |setting, plan| plan.unanswered(setting.clone()));
    assert!(unanswered.mode_unavailable.is_some());
}

#[test]
fn agent_that_confirms_a_mode_and_reports_another_is_not_believed() {
    let kept = chosen(fresh(), &[mode("plan")]);
    let (calls, _, reapplied) = apply(kept.choices(), fresh(), |setting, plan| {
        plan.confirmed(setting.clone(), &raw(&json!({})));
        plan.on_update(&mode_update("code"));
    });
    assert_eq!(calls.len(), usize::from(MAX_TRIES));
    assert!(reapplied.mode_unavailable.is_some());
}

#[test]
fn mode_of_an_agent_that_cannot_be_set_again_refuses_no_turn() {
    let mut kept = chosen(fresh(), &[]);
    assert_eq!(kept.on_update(&mode_update("plan")), Effect::Changed);
    let (_, _, reapplied) = apply(kept.choices(), fresh(), |setting, plan| plan.refused(setting.clone(), "no"));
    assert_eq!((reapplied.failed.len(), reapplied.mode_unavailable), (1, None));
    assert!(refusal_of_headless(kept.choices()).is_none());
}

#[test]
fn last_confirmed_mode_counts_whether_user_or_agent_chose_it() {
    let mut kept = chosen(fresh(), &[mode("plan")]);
    assert_eq!(kept.on_update(&mode_update("code")), Effect::Changed);
    assert_eq!(kept.offers().mode(), Some("code"));
    assert_eq!(kept.choices().mode_of_user(), Some("code"), "a user has governed the mode");
    let (calls, ..) =
        apply(kept.choices(), Offers { modes: Some(json!({"currentModeId": "plan"})), ..fresh() }, obedient);
    assert_eq!(calls, [mode("code")]);
    assert_eq!(kept.on_update(&raw(&json!({"sessionUpdate": "plan"}))), Effect::Nothing);
}

#[test]
fn mode_of_a_starting_or_refused_agent_is_no_choice() {
    let mut kept = chosen(fresh(), &[mode("plan")]);
    kept.connected(Offers { modes: Some(json!({"currentModeId": "plan"})), ..fresh() }, &Reapplied::default(), false);
    assert_eq!(kept.on_update(&mode_update("code")), Effect::Unavailable);
    assert_eq!((kept.choices().mode_of_user(), kept.offers().mode()), (Some("plan"), Some("code")));
    kept.on_update(&mode_update("code"));
    assert!(kept.mode_unavailable().is_some(), "the agent does not lift the refusal by repeating itself");
    kept.set(&option("tone", json!("loud")), &raw(&json!({})));
    assert!(kept.mode_unavailable().is_some());
    kept.set(&mode("plan"), &raw(&json!({})));
    assert_eq!((kept.mode_unavailable(), kept.choices().mode_of_user()), (None, Some("plan")));
}

#[test]
fn mode_that_is_an_option_is_a_mode() {
    let kept = chosen(with_mode_option(), &[option("m", json!("plan"))]);
    assert_eq!(kept.choices().mode_of_user(), Some("plan"));
    let (calls, _, reapplied) =
        apply(kept.choices(), with_mode_option(), |setting, plan| plan.refused(setting.clone(), "no"));
    assert_eq!(calls, [option("m", json!("plan"))]);
    assert!(reapplied.mode_unavailable.is_some());
}

#[test]
fn mode_and_the_option_beside_it_follow_each_other() {
    let both = Offers { modes: fresh().modes, ..with_mode_option() };
    let mut kept = chosen(both.clone(), &[mode("plan")]);
    assert!(kept.offers().has(&option("m", json!("plan"))));
    kept.set(&option("m", json!("code")), &raw(&json!({})));
    assert_eq!((kept.offers().mode(), kept.choices().mode_of_user()), (Some("code"), Some("code")));
    kept.set(&mode("plan"), &raw(&json!({})));
    assert_eq!(apply(kept.choices(), both, obedient).0, [mode("plan")], "one call sets both");
}

#[test]
fn vanished_option_is_reported_and_does_not_block() {
    let kept = chosen(fresh(), &[option("tone", json!("loud"))]);
    let (calls, _, reapplied) = apply(kept.choices(), Offers { options: Some(json!([])), ..fresh() }, obedient);
    assert_eq!((calls.len(), reapplied.failed.len(), reapplied.mode_unavailable), (0, 1, None));
}

#[test]
fn agent_that_loads_and_repeats_nothing_is_set_again() {
    let kept = chosen(fresh(), &[mode("plan")]);
    let (calls, offers, _) = apply(kept.choices(), Offers::default(), obedient);
    assert_eq!((calls, offers.mode()), (vec![mode("plan")], Some("plan")));
}

#[test]
fn silent_agent_is_asked_for_the_mode_all_the_same() {
    let kept = chosen(fresh(), &[Setting::Model("large".into()), option("tone", json!("loud")), mode("plan")]);
    let (calls, ..) = apply(kept.choices(), fresh(), |setting, plan| plan.unanswered(setting.clone()));
    assert_eq!(calls, [Setting::Model("large".into()), mode("plan")]);
}

#[test]
fn choices_survive_their_row_and_an_unknown_origin_is_strict() {
    let kept = chosen(fresh(), &[mode("plan"), option("fast", json!(true))]);
    assert_eq!(Choices::of_row(Some(&kept.choices().as_json())), *kept.choices());
    let newer = Choices::of_row(Some(r#"{"mode":{"value":"plan","by":"policy"},"news":1}"#));
    assert_eq!(newer.mode_of_user(), Some("plan"));
    assert_eq!(Choices::of_row(Some("{")), Choices::default());
    assert!(chosen(fresh(), &[]).choices().are_initial() && !kept.choices().are_initial());
}

#[test]
fn value_that_is_too_long_or_looks_like_a_secret_is_refused_and_not_kept() {
    assert!(mode("plan").check().is_ok() && option("fast", json!(true)).check().is_ok());
    assert!(mode(&"x".repeat(MAX_VALUE_BYTES + 1)).check().is_err());
    assert!(option("key", json!("sk-0123456789abcdef0123")).check().is_err());
    let mut kept = chosen(fresh(), &[]);
    kept.on_update(&mode_update(&"x".repeat(MAX_VALUE_BYTES + 1)));
    assert!(!kept.choices().as_json().contains("xxx"));
}

#[test]
fn agent_that_is_found_again_gets_its_mode_before_the_next_prompt() {
    let kept = chosen(fresh(), &[option("tone", json!("loud"))]);
    let calls = kept.choices().settings_to_restore(kept.offers());
    assert_eq!(calls, [option("tone", json!("loud")), mode("code")], "the mode of the handshake too");
    assert_eq!(Choices::default().settings_to_restore(&fresh()), []);
}
