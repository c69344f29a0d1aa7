//! A supervisor and a runtime, two workspaces with a route each, and one measurement there.

use std::{path::Path, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::time::sleep_until;

use super::{
    Load, RoutePlan, Start,
    point::{Processors, RoutePoint},
    turns::{Cold, Warm},
};
use crate::{
    bench::{
        closed_loop::{self, Window},
        conversation::{BenchError, Conversation},
        http_link::HttpLink,
        http_path::{self, INSTALLATION},
        processes,
        program::{Program, Workplace},
    },
    domain::routing::Route,
};

/// Sessions that are opened or closed at the same time.
const AT_ONCE: usize = 8;
/// The status of an answer.
const OK: u16 = 200;

/// Its processes. Dropping it begins to end them.
pub(crate) struct Stage {
    supervisor: Program,
    runtime: Program,
}

impl Stage {
    /// Starts both and makes a workspace for each route.
    pub(crate) async fn start(workplace: &Workplace, folder: &Path, settings: &[String]) -> Result<Self, BenchError> {
        let (near, far) = (folder.join("supervisor"), folder.join("runtime"));
        for folder in [&near, &far] {
            std::fs::create_dir_all(folder).map_err(BenchError::io(folder.display().to_string()))?;
        }
        let runtime = Program::start(workplace, "runtime", &far, settings).await?;
        let mut settings = settings.to_owned();
        settings.insert(0, format!("runtime.url=ws://{}/acp", runtime.address()));
        let supervisor = Program::start(workplace, "serve", &near, &settings).await?;
        let stage = Self { supervisor, runtime };
        for route in Route::ALL {
            stage.make_workspace(route).await.map_err(BenchError::Trial)?;
        }
        Ok(stage)
    }

    /// A workspace comes with its first session, so that one is not measured.
    async fn make_workspace(&self, route: Route) -> Result<(), String> {
        let mut link = self.link();
        let session = http_path::open_on(&mut link, workspace(route)).await?;
        http_path::close_on(&mut link, &session).await?;
        let path = format!("/acp/workspaces/{}/protocol?installationId={INSTALLATION}", workspace(route));
        let pin = json!({"pin": {"protocol": route}, "actor": "bench", "reason": "this route is measured"});
        let answer = link.put(&path, pin.to_string().into()).await?;
        http_path::read::<IgnoredAny>(&answer, OK).map(|_| ())
    }

    fn link(&self) -> HttpLink {
        HttpLink::new(self.supervisor.address())
    }

    /// Measures one point. No session of it is left open.
    pub(crate) async fn measure(&self, plan: &RoutePlan, load: Load) -> Result<RoutePoint, BenchError> {
        let prompt = plan.prompt(load.model);
        let (mut conversations, mut open) = (Vec::<Box<dyn Conversation>>::new(), Vec::new());
        match load.start {
            Start::Cold => conversations.extend((0..load.sessions).map(|_| {
                let cold = Cold::new(self.link(), workspace(load.route), load.route, &prompt);
                Box::new(cold) as Box<dyn Conversation>
            })),
            Start::Warm => {
                let opening = (0..load.sessions)
                    .map(|_| http_path::open_session(&self.supervisor, workspace(load.route).to_owned()));
                open = stream::iter(opening).buffer_unordered(AT_ONCE).try_collect().await?;
                let warm = |session| Box::new(Warm::new(self.link(), session, load.route, &prompt)) as _;
                conversations.extend(open.iter().map(|session: &String| -> Box<dyn Conversation> { warm(session) }));
            }
        }
        let window = Window::now(plan.warm_up(load.model), plan.measured);
        let processors = tokio::spawn(processors_of(window, self.supervisor.pid(), self.runtime.pid()));
        let (conversations, tally) = closed_loop::run(conversations, window, Duration::ZERO).await;
        drop(conversations);
        let processors = processors.await.unwrap_or_default();
        let closing = open.iter().map(|session| async move { http_path::close_on(&mut self.link(), session).await });
        let closed = stream::iter(closing).buffer_unordered(AT_ONCE).try_collect::<()>().await;
        closed.map_err(|cause| BenchError::Trial(format!("closing a session: {cause}")))?;
        Ok(RoutePoint::new(load, plan.measured, &tally, processors))
    }

    /// Ends both; gives the number of errors that they logged.
    pub(crate) async fn stop(self) -> Result<u64, BenchError> {
        Ok(self.supervisor.stop().await? + self.runtime.stop().await?)
    }
}

/// The workspace that is pinned to a route.
fn workspace(route: Route) -> &'static str {
    match route {
        Route::Acp => "over-acp",
        Route::Http => "over-http",
    }
}

/// Processor time within the window.
async fn processors_of(window: Window, supervisor: u32, runtime: u32) -> Processors {
    // Files of many processes are read: not on the thread that carries the load.
    let read = || {
        tokio::task::spawn_blocking(move || Processors {
            client: processes::cpu_time(&[std::process::id()]),
            supervisor: processes::cpu_time(&[supervisor]),
            runtime: processes::cpu_time(&[runtime]),
            agents: processes::cpu_time_below(runtime),
        })
    };
    sleep_until(window.from).await;
    let before = read().await.unwrap_or_default();
    sleep_until(window.until).await;
    read().await.unwrap_or_default().since(before)
}
