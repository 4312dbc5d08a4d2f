//! Collections and aliases.

use std::time::Instant;

use qdrant_client::qdrant::alias_operations::Action;
use qdrant_client::qdrant::collections_server::Collections;
use qdrant_client::qdrant::{
    AliasDescription, AliasOperations, ChangeAliases, CollectionClusterInfoRequest,
    CollectionClusterInfoResponse, CollectionDescription, CollectionExists, CollectionExistsRequest,
    CollectionExistsResponse, CollectionOperationResponse, CreateAlias, CreateCollection,
    CreateShardKeyRequest, CreateShardKeyResponse, DeleteAlias, DeleteCollection, DeleteShardKeyRequest,
    DeleteShardKeyResponse, GetCollectionInfoRequest, GetCollectionInfoResponse, ListAliasesRequest,
    ListAliasesResponse, ListCollectionAliasesRequest, ListCollectionsRequest, ListCollectionsResponse,
    ListShardKeysRequest, ListShardKeysResponse, RenameAlias, UpdateCollection,
    UpdateCollectionClusterSetupRequest, UpdateCollectionClusterSetupResponse,
};
use tonic::{Request, Response, Status};

use super::{Service, find};
use crate::catalog::AliasChange;
use crate::convert::{describe, settings};
use crate::reject::{invalid, unsupported};

#[tonic::async_trait]
impl Collections for Service {
    async fn get(
        &self,
        request: Request<GetCollectionInfoRequest>,
    ) -> Result<Response<GetCollectionInfoResponse>, Status> {
        let began = Instant::now();
        let GetCollectionInfoRequest { collection_name } = request.into_inner();
        let info =
            self.read(move |catalog| Ok(describe::collection(&*find(catalog, &collection_name)?))).await?;
        let time = began.elapsed().as_secs_f64();
        Ok(Response::new(GetCollectionInfoResponse { result: Some(info), time }))
    }

    async fn list(
        &self,
        request: Request<ListCollectionsRequest>,
    ) -> Result<Response<ListCollectionsResponse>, Status> {
        let began = Instant::now();
        let ListCollectionsRequest {} = request.into_inner();
        let names = self.catalog.names().into_iter();
        let collections = names.map(|name| CollectionDescription { name }).collect();
        Ok(Response::new(ListCollectionsResponse { collections, time: began.elapsed().as_secs_f64() }))
    }

    async fn create(
        &self,
        request: Request<CreateCollection>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        let began = Instant::now();
        let (name, settings) = settings::collection(request.into_inner())?;
        self.write(move |catalog| Ok(catalog.create(name, settings)?)).await?;
        Ok(done(true, began))
    }

    async fn delete(
        &self,
        request: Request<DeleteCollection>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        let began = Instant::now();
        // It is deleted before the response: there are no other nodes to wait for.
        let DeleteCollection { collection_name, timeout: _ } = request.into_inner();
        let existed = self.write(move |catalog| Ok(catalog.delete(&collection_name)?)).await?;
        Ok(done(existed, began))
    }

    async fn collection_exists(
        &self,
        request: Request<CollectionExistsRequest>,
    ) -> Result<Response<CollectionExistsResponse>, Status> {
        let began = Instant::now();
        let CollectionExistsRequest { collection_name } = request.into_inner();
        let result = Some(CollectionExists { exists: self.catalog.find(&collection_name).is_ok() });
        Ok(Response::new(CollectionExistsResponse { result, time: began.elapsed().as_secs_f64() }))
    }

    async fn update_aliases(
        &self,
        request: Request<ChangeAliases>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        let began = Instant::now();
        let ChangeAliases { actions, timeout: _ } = request.into_inner();
        let changes = actions.into_iter().map(alias_change).collect::<Result<Vec<_>, _>>()?;
        self.write(move |catalog| Ok(catalog.change_aliases(changes)?)).await?;
        Ok(done(true, began))
    }

    async fn list_aliases(
        &self,
        request: Request<ListAliasesRequest>,
    ) -> Result<Response<ListAliasesResponse>, Status> {
        let began = Instant::now();
        let ListAliasesRequest {} = request.into_inner();
        Ok(described(self.catalog.aliases(), began))
    }

    async fn list_collection_aliases(
        &self,
        request: Request<ListCollectionAliasesRequest>,
    ) -> Result<Response<ListAliasesResponse>, Status> {
        let began = Instant::now();
        let ListCollectionAliasesRequest { collection_name } = request.into_inner();
        let mut aliases = self.catalog.aliases();
        aliases.retain(|(_, collection)| *collection == collection_name);
        Ok(described(aliases, began))
    }

    async fn update(
        &self,
        _: Request<UpdateCollection>,
    ) -> Result<Response<CollectionOperationResponse>, Status> {
        Err(unsupported("the call Collections.Update"))
    }

    async fn collection_cluster_info(
        &self,
        _: Request<CollectionClusterInfoRequest>,
    ) -> Result<Response<CollectionClusterInfoResponse>, Status> {
        Err(unsupported("the call Collections.CollectionClusterInfo"))
    }

    async fn update_collection_cluster_setup(
        &self,
        _: Request<UpdateCollectionClusterSetupRequest>,
    ) -> Result<Response<UpdateCollectionClusterSetupResponse>, Status> {
        Err(unsupported("the call Collections.UpdateCollectionClusterSetup"))
    }

    async fn create_shard_key(
        &self,
        _: Request<CreateShardKeyRequest>,
    ) -> Result<Response<CreateShardKeyResponse>, Status> {
        Err(unsupported("the call Collections.CreateShardKey"))
    }

    async fn delete_shard_key(
        &self,
        _: Request<DeleteShardKeyRequest>,
    ) -> Result<Response<DeleteShardKeyResponse>, Status> {
        Err(unsupported("the call Collections.DeleteShardKey"))
    }

    async fn list_shard_keys(
        &self,
        _: Request<ListShardKeysRequest>,
    ) -> Result<Response<ListShardKeysResponse>, Status> {
        Err(unsupported("the call Collections.ListShardKeys"))
    }
}

fn alias_change(operation: AliasOperations) -> Result<AliasChange, Status> {
    match operation.action {
        Some(Action::CreateAlias(CreateAlias { collection_name, alias_name })) => {
            settings::check_name(&alias_name)?;
            Ok(AliasChange::Create { alias: alias_name, collection: collection_name })
        }
        Some(Action::RenameAlias(RenameAlias { old_alias_name, new_alias_name })) => {
            settings::check_name(&new_alias_name)?;
            Ok(AliasChange::Rename { from: old_alias_name, to: new_alias_name })
        }
        Some(Action::DeleteAlias(DeleteAlias { alias_name })) => {
            Ok(AliasChange::Delete { alias: alias_name })
        }
        None => Err(invalid("Malformed AliasOperation type")),
    }
}

fn done(result: bool, began: Instant) -> Response<CollectionOperationResponse> {
    Response::new(CollectionOperationResponse { result, time: began.elapsed().as_secs_f64() })
}

fn described(aliases: Vec<(String, String)>, began: Instant) -> Response<ListAliasesResponse> {
    let aliases = aliases.into_iter();
    let aliases =
        aliases.map(|(alias_name, collection_name)| AliasDescription { alias_name, collection_name });
    Response::new(ListAliasesResponse { aliases: aliases.collect(), time: began.elapsed().as_secs_f64() })
}
