//! A supervisor and a runtime with a workspace for each route, and the measurement of one point.

use std::{path::Path, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::de::IgnoredAny;
use serde_json::json;

use super::{
    Load, Route, RoutePlan, Start,
    point::RoutePoint,
    turns::{Cold, Warm},
};
use crate::support::{
    api::{self, INSTALLATION},
    closed_loop::{self, Window},
    conversation::{BenchError, Conversation},
    http::HttpLink,
    processes,
    program::{Pair, Workplace},
};

/// Sessions that are opened or closed at the same time.
const AT_ONCE: usize = 8;

/// The processes of a load. Dropping the stage kills them.
pub(super) struct Stage(Pair);

impl Stage {
    /// Starts both processes and creates a workspace for each route.
    pub(super) async fn start(workplace: &Workplace, folder: &Path, settings: &[String]) -> Result<Self, BenchError> {
        let stage = Self(Pair::start(workplace, folder, settings, settings, async |runtime| Ok(runtime)).await?);
        for route in Route::ALL {
            stage.create_workspace(route).await.map_err(BenchError::Trial)?;
        }
        Ok(stage)
    }

    /// The first session of a workspace creates it, so that session is not measured.
    async fn create_workspace(&self, route: Route) -> Result<(), String> {
        let mut link = self.link();
        let session = api::open_on(&mut link, workspace(route)).await?;
        api::close_on(&mut link, &session).await?;
        let path = format!("/acp/workspaces/{}/protocol?installationId={INSTALLATION}", workspace(route));
        let pin = json!({"pin": {"protocol": route}, "actor": "bench", "reason": "this route is measured"});
        let answer = link.put(&path, pin.to_string().into()).await?;
        api::read::<IgnoredAny>(&answer, api::OK).map(|_| ())
    }

    fn link(&self) -> HttpLink {
        HttpLink::new(self.0.supervisor.address())
    }

    /// Measures one point, and closes its sessions.
    pub(super) async fn measure(&self, plan: &RoutePlan, load: Load) -> Result<RoutePoint, BenchError> {
        let prompt = plan.prompt(load.model);
        let (mut conversations, mut open) = (Vec::<Box<dyn Conversation>>::new(), Vec::new());
        match load.start {
            Start::Cold => conversations.extend((0..load.sessions).map(|_| {
                let cold = Cold::new(self.link(), workspace(load.route), load.route, &prompt);
                Box::new(cold) as Box<dyn Conversation>
            })),
            Start::Warm => {
                let opening = (0..load.sessions)
                    .map(|_| api::open_session(&self.0.supervisor, workspace(load.route).to_owned()));
                open = stream::iter(opening).buffer_unordered(AT_ONCE).try_collect().await?;
                let warm = |session| Box::new(Warm::new(self.link(), session, load.route, &prompt)) as _;
                conversations.extend(open.iter().map(|session: &String| -> Box<dyn Conversation> { warm(session) }));
            }
        }
        let window = Window::now(plan.warm_up(load.model), plan.measured);
        let (supervisor, runtime) = (self.0.supervisor.pid(), self.0.runtime.pid());
        let processors = tokio::spawn(processes::used_within(window, move || {
            let [client, supervisor, of_runtime] =
                [std::process::id(), supervisor, runtime].map(|pid| processes::cpu_time(&[pid]));
            [client, supervisor, of_runtime, processes::cpu_time_below(runtime)]
        }));
        let (conversations, tally) = closed_loop::run(conversations, window, Duration::ZERO).await;
        drop(conversations);
        let processors = processors.await.unwrap_or_default();
        let closing = open.iter().map(|session| async move { api::close_on(&mut self.link(), session).await });
        let closed = stream::iter(closing).buffer_unordered(AT_ONCE).try_collect::<()>().await;
        closed.map_err(|cause| BenchError::Trial(format!("closing a session: {cause}")))?;
        Ok(RoutePoint::new(load, plan.measured, &tally, processors))
    }

    /// Stops both processes; returns the number of errors that they logged.
    pub(super) async fn stop(self) -> Result<u64, BenchError> {
        self.0.stop().await
    }
}

/// The workspace that is pinned to a route.
fn workspace(route: Route) -> &'static str {
    match route {
        Route::Acp => "over-acp",
        Route::Http => "over-http",
    }
}
