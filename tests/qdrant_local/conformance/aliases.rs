//! Aliases.

use qdrant_client::qdrant::alias_operations::Action;
use qdrant_client::qdrant::collections_client::CollectionsClient;
use qdrant_client::qdrant::{
    AliasOperations, ChangeAliases, CountPointsBuilder, CreateAlias, CreateAliasBuilder,
    CreateCollectionBuilder, DeleteAlias, Distance, QueryPointsBuilder, RenameAliasBuilder,
    UpsertPointsBuilder, VectorParamsBuilder,
};
use serde_json::json;
use tonic::{Code, Status};

use crate::qdrant_local::common::{Fixture, point, refusal};

/// Makes all of the changes in one call.
async fn change(fixture: &Fixture, actions: Vec<Action>) -> Result<(), Status> {
    let mut client = CollectionsClient::connect(fixture.url.clone()).await.unwrap();
    let actions = actions.into_iter().map(|action| AliasOperations { action: Some(action) }).collect();
    client.update_aliases(ChangeAliases { actions, timeout: None }).await.map(|_| ())
}

async fn aliases(fixture: &Fixture, collection: &str) -> Vec<String> {
    let listed = fixture.client.list_collection_aliases(collection).await.unwrap().aliases;
    assert!(listed.iter().all(|alias| alias.collection_name == collection));
    let mut names: Vec<String> = listed.into_iter().map(|alias| alias.alias_name).collect();
    names.sort_unstable();
    names
}

fn created(collection: &str, alias: &str) -> Action {
    Action::CreateAlias(CreateAlias { collection_name: collection.to_owned(), alias_name: alias.to_owned() })
}

#[tokio::test]
async fn an_alias_is_taken_for_its_collection() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let (client, name) = (&fixture.client, &fixture.name);
    let alias = format!("{name}-alias");
    client.create_alias(CreateAliasBuilder::new(name, &alias)).await.unwrap();
    let points = vec![point(1, vec![1.0, 0.0], json!({}))];
    client.upsert_points(UpsertPointsBuilder::new(&alias, points).wait(true)).await.unwrap();
    for either in [name, &alias] {
        let count = client.count(CountPointsBuilder::new(either).exact(true)).await.unwrap();
        assert_eq!(count.result.unwrap().count, 1);
        let found = client.query(QueryPointsBuilder::new(either).query(vec![1.0, 0.0])).await.unwrap();
        assert_eq!(found.result.len(), 1);
        assert_eq!(client.collection_info(either).await.unwrap().result.unwrap().points_count, Some(1));
    }
    let all = client.list_aliases().await.unwrap().aliases;
    assert!(all.iter().any(|one| one.alias_name == alias && one.collection_name == *name));
    assert_eq!(aliases(&fixture, name).await, [alias]);
    fixture.end().await;
}

#[tokio::test]
async fn an_alias_moves_to_another_collection_in_one_call() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let name = fixture.name.clone();
    let (other, alias) = (format!("{name}-other"), format!("{name}-alias"));
    fixture.create(&other, 2, Distance::Dot).await;
    change(&fixture, vec![created(&name, &alias)]).await.unwrap();
    let delete = Action::DeleteAlias(DeleteAlias { alias_name: alias.clone() });
    change(&fixture, vec![delete, created(&other, &alias)]).await.unwrap();
    assert_eq!(aliases(&fixture, &name).await, [""; 0]);
    assert_eq!(aliases(&fixture, &other).await, [alias.as_str()]);
    // Making it again leads it elsewhere.
    change(&fixture, vec![created(&name, &alias)]).await.unwrap();
    assert_eq!(aliases(&fixture, &name).await, [alias]);
    fixture.client.delete_collection(other).await.unwrap();
    fixture.end().await;
}

#[tokio::test]
async fn aliases_are_renamed_and_deleted() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let (client, name) = (&fixture.client, &fixture.name);
    let (from, to) = (format!("{name}-from"), format!("{name}-to"));
    client.create_alias(CreateAliasBuilder::new(name, &from)).await.unwrap();
    client.rename_alias(RenameAliasBuilder::new(&from, &to)).await.unwrap();
    assert_eq!(aliases(&fixture, name).await, [to.as_str()]);
    assert_eq!(refusal(client.collection_info(&from).await).0, Code::NotFound);
    client.delete_alias(&to).await.unwrap();
    assert_eq!(aliases(&fixture, name).await, [""; 0]);
    assert_eq!(refusal(client.collection_info(&to).await).0, Code::NotFound);
    // One that is not there is as good as deleted, but has no name to change.
    client.delete_alias(&to).await.unwrap();
    assert_eq!(refusal(client.rename_alias(RenameAliasBuilder::new(&to, &from)).await).0, Code::NotFound);
    fixture.end().await;
}

#[tokio::test]
async fn aliases_that_make_no_sense_are_refused() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let (client, name) = (&fixture.client, &fixture.name);
    let alias = format!("{name}-alias");
    let unknown = client.create_alias(CreateAliasBuilder::new(format!("{name}-unknown"), &alias)).await;
    assert_eq!(refusal(unknown).0, Code::NotFound);
    let taken = client.create_alias(CreateAliasBuilder::new(name, name)).await;
    assert_eq!(refusal(taken).0, Code::AlreadyExists);
    client.create_alias(CreateAliasBuilder::new(name, &alias)).await.unwrap();
    let vectors = VectorParamsBuilder::new(2, Distance::Dot);
    let shadow = client.create_collection(CreateCollectionBuilder::new(&alias).vectors_config(vectors)).await;
    assert_eq!(refusal(shadow).0, Code::InvalidArgument);
    fixture.end().await;
}

#[tokio::test]
async fn aliases_go_with_their_collection() {
    let fixture = Fixture::with(2, Distance::Dot).await;
    let (client, name) = (&fixture.client, &fixture.name);
    let alias = format!("{name}-alias");
    client.create_alias(CreateAliasBuilder::new(name, &alias)).await.unwrap();
    client.delete_collection(name).await.unwrap();
    let all = client.list_aliases().await.unwrap().aliases;
    assert!(all.iter().all(|one| one.alias_name != alias));
}
