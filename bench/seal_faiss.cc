/* SPDX-License-Identifier: Apache-2.0 */
/* seal_faiss.cc: FAISS's k-means behind one C function, for bench/seal.c. Debian's libfaiss has no C
 * interface of its own. Nothing but the bench links it. */
#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <omp.h>

#include <cstring>
#include <vector>

extern "C" void openblas_set_num_threads(int threads);
extern "C" void seal_faiss(const float *keys, size_t count, size_t dim, size_t clusters,
	unsigned iterations, int inner_product, int64_t *labels, float *centroids);

/* Clusters `count` keys [count][dim] with one thread, from the given start, in `iterations`
 * iterations and a last assignment, without subsampling. By inner product, centroids are normalised
 * (spherical k-means), else by Euclidean distance. */
extern "C" void seal_faiss(const float *keys, size_t count, size_t dim, size_t clusters,
	unsigned iterations, int inner_product, int64_t *labels, float *centroids)
{
	faiss::ClusteringParameters parameters;
	faiss::IndexFlat index((faiss::Index::idx_t)dim,
		inner_product ? faiss::METRIC_INNER_PRODUCT : faiss::METRIC_L2);
	std::vector<float> products(count);

	omp_set_num_threads(1);
	openblas_set_num_threads(1);
	parameters.niter = (int)iterations;
	parameters.spherical = inner_product != 0;
	parameters.min_points_per_centroid = 1;
	parameters.max_points_per_centroid = (int)count;
	faiss::Clustering clustering((int)dim, (int)clusters, parameters);
	clustering.centroids.assign(centroids, centroids + clusters * dim);
	clustering.train((faiss::Index::idx_t)count, keys, index);
	index.search((faiss::Index::idx_t)count, keys, 1, products.data(), labels);
	std::memcpy(centroids, clustering.centroids.data(), clusters * dim * sizeof(float));
}
