//! What kube-rs clients see: reading, writing, watching.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::time::Duration;

use apiserver::ApiServer;
use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use kube::api::{
    Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams,
};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config, ResourceExt};
use operator_api::{AddressPool, crds};
use serde_json::{Value, json};

fn client(server: &ApiServer) -> Client {
    let config = Config::new(server.url().parse().unwrap());
    Client::try_from(config).unwrap()
}

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str, data: Value) -> ConfigMap {
    of(json!({"metadata": {"name": name}, "data": data}))
}

fn status(error: kube::Error) -> (u16, String, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason.clone(), status.message.clone()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_object_is_created_read_replaced_and_deleted() {
    let server = ApiServer::start();
    let api: Api<ConfigMap> = Api::namespaced(client(&server), "default");
    let made = api
        .create(&PostParams::default(), &config_map("a", json!({"k": "1"})))
        .await
        .unwrap();
    assert!(made.uid().is_some() && made.creation_timestamp().is_some());
    assert!(made.resource_version().unwrap().parse::<u64>().unwrap() > 0);
    let again = api
        .create(&PostParams::default(), &config_map("a", json!({})))
        .await
        .unwrap_err();
    let (code, reason, message) = status(again);
    assert_eq!(
        (code, reason.as_str(), message.as_str()),
        (409, "AlreadyExists", "configmaps \"a\" already exists")
    );

    let mut changed = made.clone();
    changed.data.get_or_insert_default().insert("k".into(), "2".into());
    let replaced = api.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(replaced.resource_version(), made.resource_version());
    let (code, reason, _) = status(api.replace("a", &PostParams::default(), &changed).await.unwrap_err());
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    let same = api.replace("a", &PostParams::default(), &replaced).await.unwrap();
    assert_eq!(
        same.resource_version(),
        replaced.resource_version(),
        "nothing was changed"
    );

    let wrong = DeleteParams::default().preconditions(Preconditions {
        uid: Some("x".into()),
        resource_version: None,
    });
    assert_eq!(status(api.delete("a", &wrong).await.unwrap_err()).0, 409);
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let (code, reason, message) = status(api.get("a").await.unwrap_err());
    assert_eq!(
        (code, reason.as_str(), message.as_str()),
        (404, "NotFound", "configmaps \"a\" not found")
    );
}

#[tokio::test]
async fn a_finalizer_holds_an_object_until_it_is_taken_out() {
    let server = ApiServer::start();
    let api: Api<ConfigMap> = Api::namespaced(client(&server), "default");
    let held: ConfigMap = of(json!({"metadata": {"name": "a", "finalizers": ["x.dev/y"]}}));
    api.create(&PostParams::default(), &held).await.unwrap();
    let marked = api.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    let more = json!({"metadata": {"finalizers": ["x.dev/y", "x.dev/z"]}});
    let refused = api
        .patch("a", &PatchParams::default(), &Patch::Merge(&more))
        .await
        .unwrap_err();
    assert_eq!(status(refused).0, 422);
    let none = json!({"metadata": {"finalizers": null}});
    api.patch("a", &PatchParams::default(), &Patch::Merge(&none))
        .await
        .unwrap();
    assert_eq!(status(api.get("a").await.unwrap_err()).0, 404);
}

#[tokio::test]
async fn a_watcher_sees_every_change_and_survives_410() {
    let server = ApiServer::start();
    let api: Api<ConfigMap> = Api::namespaced(client(&server), "kube-public");
    server
        .create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "kube-public"}}))
        .unwrap();
    for streaming in [false, true] {
        let config = watcher::Config::default()
            .labels("!skip")
            .fields("metadata.name!=kube-root-ca.crt");
        let config = if streaming { config.streaming_lists() } else { config };
        let mut stream = watcher(api.clone(), config).default_backoff().boxed();
        let mut next = async || {
            tokio::time::timeout(Duration::from_secs(10), stream.try_next())
                .await
                .unwrap()
                .unwrap()
                .unwrap()
        };
        assert!(matches!(next().await, watcher::Event::Init));
        assert!(matches!(next().await, watcher::Event::InitApply(object) if object.name_any() == "a"));
        assert!(matches!(next().await, watcher::Event::InitDone));
        server
            .merge(
                "configmaps",
                "kube-public",
                "a",
                "",
                json!({"data": {"n": streaming.to_string()}}),
            )
            .unwrap();
        assert!(matches!(next().await, watcher::Event::Apply(_)));
        // What falls out of sight is deleted for who looks.
        server
            .merge(
                "configmaps",
                "kube-public",
                "a",
                "",
                json!({"metadata": {"labels": {"skip": ""}}}),
            )
            .unwrap();
        assert!(matches!(next().await, watcher::Event::Delete(_)));
        server
            .merge(
                "configmaps",
                "kube-public",
                "a",
                "",
                json!({"metadata": {"labels": null}}),
            )
            .unwrap();
        assert!(matches!(next().await, watcher::Event::Apply(_)));
        // A broken watch goes on where it was; one from too long ago starts over.
        server.faults().drop_watches();
        server
            .merge(
                "configmaps",
                "kube-public",
                "a",
                "",
                json!({"data": {"m": streaming.to_string()}}),
            )
            .unwrap();
        assert!(matches!(next().await, watcher::Event::Apply(_)));
        server.faults().expire_next_watch(1, "configmaps");
        server.faults().drop_watches();
        let mut events = Vec::new();
        while !matches!(events.last(), Some(watcher::Event::InitDone)) {
            // The 410 itself is an error in the stream.
            if let Ok(Some(event)) = tokio::time::timeout(Duration::from_secs(10), stream.try_next())
                .await
                .unwrap()
            {
                events.push(event);
            }
        }
        assert!(events.iter().any(|event| matches!(event, watcher::Event::InitApply(_))));
    }
}

#[tokio::test]
async fn a_forgotten_revision_is_gone_for_watches_and_pages() {
    let server = ApiServer::builder().history(2).start();
    let api: Api<ConfigMap> = Api::namespaced(client(&server), "default");
    for i in 0..5 {
        api.create(&PostParams::default(), &config_map(&format!("c{i}"), json!({})))
            .await
            .unwrap();
    }
    let page = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(page.items.len(), 2);
    let token = page.metadata.continue_.clone().unwrap();
    // A page is of the time of the first one.
    server.delete("configmaps", "default", "c4").unwrap();
    let rest = api
        .list(&ListParams::default().limit(10).continue_token(&token))
        .await
        .unwrap();
    assert!(rest.items.iter().any(|object| object.name_any() == "c4"));
    for i in 5..9 {
        api.create(&PostParams::default(), &config_map(&format!("c{i}"), json!({})))
            .await
            .unwrap();
    }
    let (code, reason, _) = status(
        api.list(&ListParams::default().limit(10).continue_token(&token))
            .await
            .unwrap_err(),
    );
    assert_eq!((code, reason.as_str()), (410, "Expired"));
    let version = page.metadata.resource_version.unwrap();
    let mut stream = api.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    match stream.try_next().await.unwrap().unwrap() {
        WatchEvent::Error(status) => assert_eq!(status.code, 410),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn garbage_is_collected_and_a_namespace_ends_with_what_is_in_it() {
    let server = ApiServer::start();
    let client = client(&server);
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .create(&PostParams::default(), &of(json!({"metadata": {"name": "n"}})))
        .await
        .unwrap();
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "n");
    let owner = api
        .create(&PostParams::default(), &config_map("owner", json!({})))
        .await
        .unwrap();
    let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()});
    let owned: ConfigMap = of(json!({"metadata": {"name": "owned", "ownerReferences": [reference]}}));
    api.create(&PostParams::default(), &owned).await.unwrap();
    api.create(&PostParams::default(), &config_map("free", json!({})))
        .await
        .unwrap();
    api.delete("owner", &DeleteParams::default()).await.unwrap();
    gone(&api, "owned").await;
    api.get("free").await.unwrap();
    let marked = namespaces
        .delete("n", &DeleteParams::default())
        .await
        .unwrap()
        .left()
        .unwrap();
    assert_eq!(marked.status.unwrap().phase.as_deref(), Some("Terminating"));
    let refused = api
        .create(&PostParams::default(), &config_map("late", json!({})))
        .await
        .unwrap_err();
    assert_eq!(status(refused).0, 403);
    gone(&namespaces, "n").await;
    assert!(server.read("configmaps", "n", "free").is_none());
    let refused = api
        .create(&PostParams::default(), &config_map("later", json!({})))
        .await
        .unwrap_err();
    assert_eq!(status(refused).2, "namespaces \"n\" not found");
}

async fn gone<K>(api: &Api<K>, name: &str)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    for _ in 0..500 {
        if api.get_opt(name).await.unwrap().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} is still there");
}

#[tokio::test]
async fn status_and_main_path_leave_each_other_alone() {
    let server = ApiServer::start();
    let api: Api<AddressPool> = Api::all(client(&server));
    let pool = json!({"apiVersion": "vipline.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "p"},
        "spec": {"addresses": ["192.0.2.0/24"]}, "status": {"used": 5}});
    let made = api.create(&PostParams::default(), &of(pool)).await.unwrap();
    assert_eq!(
        (made.metadata.generation, made.status.is_none(), made.spec.auto_assign),
        (Some(1), true, true)
    );
    let patch = json!({"status": {"used": 7}, "spec": {"autoAssign": false}, "metadata": {"labels": {"a": "b"}}});
    let patched = api
        .patch_status("p", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    assert_eq!((patched.status.unwrap().used, patched.spec.auto_assign), (7, true));
    assert_eq!((patched.metadata.generation, patched.metadata.labels), (Some(1), None));
    let patched = api
        .patch("p", &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .unwrap();
    assert_eq!(
        (patched.metadata.generation, patched.spec.auto_assign),
        (Some(2), false)
    );
    assert_eq!(crds().len(), server.list("customresourcedefinitions").len());
}

#[tokio::test]
async fn a_service_status_is_applied_and_taken_back() {
    let server = ApiServer::start();
    let api: Api<Service> = Api::namespaced(client(&server), "default");
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    api.create(&PostParams::default(), &of(service)).await.unwrap();
    let status = |ingress: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "status": {"loadBalancer": {"ingress": ingress}}})
    };
    let params = PatchParams::apply("operator");
    let set = api
        .patch_status("s", &params, &Patch::Apply(status(json!([{"ip": "192.0.2.1"}]))))
        .await
        .unwrap();
    assert_eq!(set.status.unwrap().load_balancer.unwrap().ingress.unwrap().len(), 1);
    let before = set.metadata.resource_version.clone();
    let again = api
        .patch_status("s", &params, &Patch::Apply(status(json!([{"ip": "192.0.2.1"}]))))
        .await
        .unwrap();
    assert_eq!(
        again.metadata.resource_version, before,
        "applied again, nothing is written"
    );
    let empty = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}});
    let taken = api.patch_status("s", &params, &Patch::Apply(empty)).await.unwrap();
    assert!(taken.status.unwrap().load_balancer.unwrap().ingress.is_none());
}
