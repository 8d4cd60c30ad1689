/* SPDX-License-Identifier: Apache-2.0 */
/* model.c: models: registering, registering again with another daemon, listing.
 *
 * A handle keeps what was asked for. Its number belongs to one daemon; after another attach it is
 * asked for again when a sequence is opened, not before. */
#include "client/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

static int check_range(
	struct kvr_client *client, const char *what, uint32_t value, uint32_t min, uint32_t max)
{
	if (value >= min && value <= max)
		return 0;
	return kvr_client_argument(client, "%s is %u, not %u to %u", what, value, min, max);
}

/* Tells which number of the geometry is wrong, before a daemon says that one is. Zeroes that mean a
 * default are passed over. */
static int check_config(struct kvr_client *client, const struct kvr_model_config *config)
{
	const struct {
		const char *what;
		uint32_t value, min, max;
	} ranges[] = {
		{"layers", config->layers, 1, KVR_LAYERS_MAX},
		{"query_heads", config->query_heads, 1, KVR_QUERY_HEADS_MAX},
		{"kv_heads", config->kv_heads, 1, KVR_KV_HEADS_MAX},
		{"key_dim", config->key_dim, KVR_DIM_MIN, KVR_DIM_MAX},
		{"value_dim", config->value_dim, KVR_DIM_MIN, KVR_DIM_MAX},
		{"type", (uint32_t)config->type, KVR_F32, KVR_BF16},
		{"segment_tokens",
			config->segment_tokens ? config->segment_tokens : KVR_SEGMENT_TOKENS,
			KVR_SEGMENT_TOKENS_MIN, KVR_SEGMENT_TOKENS_MAX},
		{"cluster_tokens",
			config->cluster_tokens ? config->cluster_tokens : KVR_CLUSTER_TOKENS,
			KVR_CLUSTER_TOKENS_MIN, KVR_CLUSTER_TOKENS_MAX},
		{"sink_tokens", config->sink_tokens == -1 ? 0 : (uint32_t)config->sink_tokens, 0,
			KVR_BLOCK_TOKENS},
		{"layers * kv_heads", config->layers * config->kv_heads, 1, KVR_LANES_MAX},
		{"dense_count", config->dense_count, 0, KVR_LANES_MAX},
		{"merged", config->merged, 0, (1u << KVR_MERGED_SETS) - 1},
	};

	if (!config->name || config->name[0] == '\0' || strlen(config->name) >= KVR_NAME_MAX)
		return kvr_client_argument(
			client, "name is missing, or longer than %u bytes", KVR_NAME_MAX - 1);
	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		int rc = check_range(
			client, ranges[i].what, ranges[i].value, ranges[i].min, ranges[i].max);

		if (rc < 0)
			return rc;
	}
	if (config->query_heads % config->kv_heads != 0)
		return kvr_client_argument(client, "query_heads %u is no multiple of kv_heads %u",
			config->query_heads, config->kv_heads);
	if (config->segment_tokens % KVR_BLOCK_TOKENS != 0)
		return kvr_client_argument(client, "segment_tokens %u is no multiple of %u",
			config->segment_tokens, KVR_BLOCK_TOKENS);
	if (config->dense_count && !config->dense_lanes)
		return kvr_client_argument(client, "dense_lanes is NULL");
	return 0;
}

static int to_geometry(struct kvr_client *client, const struct kvr_model_config *config,
	struct kvr_geometry *ret_geometry)
{
	struct kvr_geometry geometry = {
		.layer_count = config->layers,
		.query_heads = config->query_heads,
		.kv_heads = config->kv_heads,
		.key_dim = config->key_dim,
		.value_dim = config->value_dim,
		.dtype = (enum kvr_dtype)config->type,
		.segment_tokens = config->segment_tokens,
		.cluster_tokens = config->cluster_tokens,
		.sink_tokens = config->sink_tokens < 0 ? UINT32_MAX : (uint32_t)config->sink_tokens,
		.merged = config->merged,
	};

	for (uint32_t i = 0; i < config->dense_count; i++) {
		uint32_t lane = config->dense_lanes[i];

		if (lane >= kvr_geometry_lanes(&geometry))
			return kvr_client_argument(client, "dense lane %u of %u lanes", lane,
				kvr_geometry_lanes(&geometry));
		geometry.dense[lane / 64] |= UINT64_C(1) << (lane % 64);
	}
	*ret_geometry = geometry;
	return 0;
}

/* Whether a daemon's geometry is what was asked for, with defaults filled in. Extents in the region
 * are computed from it. */
static bool same_geometry(const struct kvr_geometry *wanted, const struct kvr_geometry *got)
{
	return kvr_geometry_valid(got) && got->layer_count == wanted->layer_count &&
	       got->query_heads == wanted->query_heads && got->kv_heads == wanted->kv_heads &&
	       got->key_dim == wanted->key_dim && got->value_dim == wanted->value_dim &&
	       got->dtype == wanted->dtype;
}

/* Asks the daemon for a model's number. */
static int model_register(struct kvr_model *model, uint64_t deadline_ns)
{
	struct kvr_client *client = model->client;
	struct kvr_request request = {.kind = KVR_REQUEST_MODEL_REGISTER};
	int rc;

	memcpy(request.model_register.name, model->name, sizeof(model->name));
	memcpy(request.model_register.digest, model->digest, sizeof(model->digest));
	request.model_register.geometry = model->wanted;
	request.model_register.rank = model->rank;
	rc = kvr_client_call(client, &request, NULL, deadline_ns);
	if (rc < 0)
		return rc;
	if (!same_geometry(&model->wanted, &client->reply.model_registered.geometry))
		return kvr_client_refuse(client, EPROTO, "use a daemon of the library's version",
			"the daemon registered another geometry for %s", model->name);
	model->geometry = client->reply.model_registered.geometry;
	model->number = client->reply.model_registered.model;
	model->generation = client->generation;
	return 0;
}

int kvr_client_begin_model(struct kvr_model *model, uint64_t deadline_ns)
{
	int rc = kvr_client_begin(model->client, deadline_ns);

	if (rc < 0)
		return rc;
	if (model->generation == model->client->generation)
		return 0;
	return model_register(model, deadline_ns);
}

/* Another handle of the same model: the engine that registers twice gets the same one. */
static struct kvr_model *find_twin(struct kvr_client *client, const struct kvr_model *model)
{
	struct kvr_list *node;

	KVR_LIST_EACH (node, &client->models) {
		struct kvr_model *other = KVR_CONTAINER_OF(node, struct kvr_model, link);

		if (other->generation == model->generation && other->number == model->number)
			return other;
	}
	return NULL;
}

int kvr_model_register(struct kvr_client *client, const struct kvr_model_config *config,
	struct kvr_model **ret_model)
{
	struct kvr_model *model, *twin;
	uint64_t deadline_ns;
	int rc;

	if (!client)
		return -EINVAL;
	if (!config || !ret_model)
		return kvr_client_argument(client, "%s is NULL", config ? "ret_model" : "config");
	rc = check_config(client, config);
	if (rc < 0)
		return rc;
	model = calloc(1, sizeof(*model));
	if (!model)
		return kvr_client_refuse(client, ENOMEM, "free memory", "a model's handle");
	kvr_list_init(&model->link);
	model->client = client;
	memcpy(model->name, config->name, strlen(config->name) + 1);
	memcpy(model->digest, config->digest, sizeof(model->digest));
	model->rank = config->rank;
	deadline_ns = kvr_client_deadline(client);
	rc = to_geometry(client, config, &model->wanted);
	if (rc == 0)
		rc = kvr_client_begin(client, deadline_ns);
	if (rc == 0)
		rc = model_register(model, deadline_ns);
	if (rc < 0) {
		free(model);
		return rc;
	}
	twin = find_twin(client, model);
	if (twin) {
		free(model);
		model = twin;
	} else {
		kvr_list_push(&client->models, &model->link);
	}
	*ret_model = model;
	return 0;
}

static void to_info(const struct kvr_wire_model *from, struct kvr_model_info *ret_info)
{
	memset(ret_info, 0, sizeof(*ret_info));
	memcpy(ret_info->name, from->name, sizeof(ret_info->name));
	memcpy(ret_info->digest, from->digest, sizeof(ret_info->digest));
	ret_info->model = from->model;
	ret_info->layers = from->geometry.layer_count;
	ret_info->query_heads = from->geometry.query_heads;
	ret_info->kv_heads = from->geometry.kv_heads;
	ret_info->key_dim = from->geometry.key_dim;
	ret_info->value_dim = from->geometry.value_dim;
	ret_info->type = (enum kvr_type)from->geometry.dtype;
	ret_info->segment_tokens = from->geometry.segment_tokens;
	ret_info->cluster_tokens = from->geometry.cluster_tokens;
	ret_info->sink_tokens = from->geometry.sink_tokens;
	ret_info->merged = from->geometry.merged;
	ret_info->rank = from->rank;
	ret_info->segment_count = from->segment_count;
	ret_info->stored_bytes = from->stored_bytes;
}

int kvr_model_list(
	struct kvr_client *client, uint32_t first, struct kvr_model_info *ret_models, uint32_t max)
{
	const struct kvr_reply *reply;
	uint32_t cursor = 0, passed = 0; /* the daemon's own place; entries before `first` */
	uint64_t deadline_ns;
	uint32_t count = 0;
	int rc;

	if (!client)
		return -EINVAL;
	if (!ret_models && max)
		return kvr_client_argument(client, "ret_models is NULL");
	reply = &client->reply;
	deadline_ns = kvr_client_deadline(client);
	rc = kvr_client_begin(client, deadline_ns);
	while (rc == 0 && count < max) {
		struct kvr_request request = {.kind = KVR_REQUEST_MODEL_LIST};

		request.model_list.first = cursor;
		rc = kvr_client_call(client, &request, NULL, deadline_ns);
		if (rc < 0)
			break;
		for (uint32_t i = 0; i < reply->models.count && count < max; i++) {
			if (passed++ >= first)
				to_info(&reply->models.entries[i], &ret_models[count++]);
		}
		if (reply->models.next == 0)
			break;
		rc = kvr_client_page(client, cursor, reply->models.next);
		cursor = reply->models.next;
	}
	return rc < 0 ? rc : (int)count;
}
