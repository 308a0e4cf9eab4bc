/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "decoders.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>

#include "../ipc/log.h"
#include "restore.h"

struct worker {
	struct decoders *all;
	pthread_t thread;
	sem_t go;
	struct decoder *decoder;
	struct decode_job *job; /* NULL: end */
};

struct decoders {
	struct restore *r;
	unsigned n; /* with the main thread, which is worker[0] */
	sem_t done;
	struct worker worker[MC_DECODERS_MAX];
};

static void wait_for(sem_t *s)
{
	while (sem_wait(s) < 0 && errno == EINTR)
		;
}

static void do_job(struct worker *w, struct decode_job *job)
{
	job->error = slab_decode(w->all->r, w->decoder, job->in, &job->out, &job->is_state);
}

static void *run(void *arg)
{
	struct worker *w = arg;

	for (;;) {
		wait_for(&w->go);
		if (!w->job)
			return NULL;
		do_job(w, w->job);
		sem_post(&w->all->done);
	}
}

/* Signals are the event loop's. */
static int start_thread(struct worker *w)
{
	sigset_t all, was;
	int e;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &was);
	e = pthread_create(&w->thread, NULL, run, w);
	pthread_sigmask(SIG_SETMASK, &was, NULL);
	return -e;
}

static int add(struct decoders *d)
{
	struct worker *w = &d->worker[d->n];
	int e = decoder_new(&w->decoder, d->r->a->slabs.unit);

	if (e < 0)
		return e;
	w->all = d;
	sem_init(&w->go, 0, 0);
	e = d->n ? start_thread(w) : 0;
	if (e < 0) {
		sem_destroy(&w->go);
		w->decoder = decoder_free(w->decoder);
		return e;
	}
	d->n++;
	return 0;
}

static void drop(struct decoders *d)
{
	struct worker *w = &d->worker[--d->n];

	if (d->n) {
		w->job = NULL;
		sem_post(&w->go);
		pthread_join(w->thread, NULL);
	}
	sem_destroy(&w->go);
	w->decoder = decoder_free(w->decoder);
}

int decoders_new(struct decoders **ret, struct restore *r)
{
	struct decoders *d = calloc(1, sizeof(*d));
	int e;

	if (!d)
		return -ENOMEM;
	d->r = r;
	sem_init(&d->done, 0, 0);
	e = add(d);
	if (e < 0) {
		free(d);
		return e;
	}
	*ret = d;
	return 0;
}

struct decoders *decoders_free(struct decoders *d)
{
	if (!d)
		return NULL;
	while (d->n)
		drop(d);
	sem_destroy(&d->done);
	free(d);
	return NULL;
}

void decoders_set(struct decoders *d, unsigned n)
{
	int e = 0;

	n = n < 1 ? 1 : n > MC_DECODERS_MAX ? MC_DECODERS_MAX : n;
	while (d->n > n)
		drop(d);
	while (d->n < n && e == 0)
		e = add(d);
	if (e < 0) {
		mc_log_errno(e,
		             "%u decoders instead of %u work; free memory on this host, then mcctl "
		             "workers",
		             d->n, n);
		/* Not tried again at every turn. */
		atomic_store(&d->r->a->config->decoders, d->n);
	}
}

unsigned decoders_count(const struct decoders *d)
{
	return d->n;
}

void decoders_run(struct decoders *d, struct decode_job *job, unsigned n)
{
	for (unsigned i = 1; i < n; i++) {
		d->worker[i].job = &job[i];
		sem_post(&d->worker[i].go);
	}
	do_job(&d->worker[0], &job[0]);
	for (unsigned i = 1; i < n; i++)
		wait_for(&d->done);
}

struct decoder *decoders_main(struct decoders *d)
{
	return d->worker[0].decoder;
}
