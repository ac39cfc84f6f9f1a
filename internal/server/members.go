package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
)

// maxMembers bounds how many nodes hold the metadata: every one more makes writing slower.
const maxMembers = 5

// members is api.Members over etcd's cluster API. Safe for concurrent use.
type members struct{ client *clientv3.Client }

// List asks every member how it is, all at once. That takes a new connection with each: it is for those who need to know.
func (m members) List(ctx context.Context) ([]*pb.MetadataMember, error) {
	out, err := m.known(ctx)
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	for _, x := range out {
		go func() {
			defer func() { done <- struct{}{} }()
			if x.ClientUrl == "" {
				return
			}
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := m.client.Status(ctx, x.ClientUrl)
			x.Healthy = err == nil
		}()
	}
	for range out {
		<-done
	}
	return out, nil
}

// known is List without asking whether they are healthy.
func (m members) known(ctx context.Context) ([]*pb.MetadataMember, error) {
	r, err := m.client.MemberList(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	out := make([]*pb.MetadataMember, len(r.Members))
	for i, x := range r.Members {
		out[i] = &pb.MetadataMember{Name: memberName(x), Id: strconv.FormatUint(x.ID, 16), Learner: x.IsLearner}
		if len(x.ClientURLs) > 0 {
			out[i].ClientUrl = x.ClientURLs[0]
		}
	}
	slices.SortFunc(out, func(a, b *pb.MetadataMember) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// addLock is the etcd lock under which a member is added.
const addLock = "/keelson/locks/members"

// Add implements api.Members. Only one node adds at a time, and only when there is no learner: etcd would refuse a
// second learner only after it logged the request, and a member that reads its log again later would take it for real.
func (m members) Add(ctx context.Context, name, peerURL string) (uint64, string, error) {
	sess, err := concurrency.NewSession(m.client, concurrency.WithTTL(10), concurrency.WithContext(ctx))
	if err != nil {
		return 0, "", unavailable(err)
	}
	defer sess.Close()
	lock := concurrency.NewMutex(sess, addLock)
	if err := lock.Lock(ctx); err != nil {
		return 0, "", unavailable(err)
	}
	defer lock.Unlock(context.WithoutCancel(ctx))
	return m.add(ctx, name, peerURL)
}

func (m members) add(ctx context.Context, name, peerURL string) (uint64, string, error) {
	r, err := m.client.MemberList(ctx)
	if err != nil {
		return 0, "", unavailable(err)
	}
	list := r.Members
	i := slices.IndexFunc(list, func(x *etcdserverpb.Member) bool { return x.Name == name || slices.Contains(x.PeerURLs, peerURL) })
	if i >= 0 && list[i].Name != "" && !slices.Contains(list[i].PeerURLs, peerURL) {
		return 0, "", fmt.Errorf("%w: there is a metadata member %s at %s", meta.ErrExists, name, strings.Join(list[i].PeerURLs, ","))
	}
	if i >= 0 && list[i].Name != "" {
		// It has served, and asks because it has lost its data. As the same member, without its log, it could vote twice.
		removed, err := m.client.MemberRemove(ctx, list[i].ID)
		if err != nil {
			return 0, "", unavailable(err)
		}
		list, i = removed.Members, -1
	}
	if i < 0 {
		if len(list) >= maxMembers {
			return 0, "", fmt.Errorf("%w: %d nodes hold the metadata, and more would only slow it down; set this node's roles to storage", meta.ErrExists, len(list))
		}
		if j := slices.IndexFunc(list, func(x *etcdserverpb.Member) bool { return x.IsLearner }); j >= 0 {
			return 0, "", fmt.Errorf("%w: another node (%s) is being added", api.ErrNotCaughtUp, strings.Join(list[j].PeerURLs, ","))
		}
		added, err := m.client.MemberAddAsLearner(ctx, []string{peerURL})
		if err != nil {
			return 0, "", unavailable(err)
		}
		list, i = added.Members, slices.IndexFunc(added.Members, func(x *etcdserverpb.Member) bool { return x.ID == added.Member.ID })
	}
	var initial []string
	for j, x := range list {
		n := x.Name
		if j == i {
			n = name
		}
		if n == "" {
			return 0, "", fmt.Errorf("%w: another node (%s) is being added", api.ErrNotCaughtUp, strings.Join(x.PeerURLs, ","))
		}
		for _, u := range x.PeerURLs {
			initial = append(initial, n+"="+u)
		}
	}
	return list[i].ID, strings.Join(initial, ","), nil
}

// Promote implements api.Members.
func (m members) Promote(ctx context.Context, name string) error {
	x, err := m.find(ctx, name)
	if err != nil || !x.IsLearner {
		return err
	}
	_, err = m.client.MemberPromote(ctx, x.ID)
	return unavailable(err)
}

// Remove implements api.Members.
func (m members) Remove(ctx context.Context, name string) error {
	x, err := m.find(ctx, name)
	if err != nil {
		return err
	}
	_, err = m.client.MemberRemove(ctx, x.ID)
	return unavailable(err)
}

func (m members) find(ctx context.Context, name string) (*etcdserverpb.Member, error) {
	r, err := m.client.MemberList(ctx)
	if err != nil {
		return nil, unavailable(err)
	}
	for _, x := range r.Members {
		if memberName(x) == name {
			return x, nil
		}
	}
	return nil, fmt.Errorf("metadata member %s: %w", name, meta.ErrNotFound)
}

// memberName is the name of a member, or the URLs at which it is to listen if it hasn't begun yet.
func memberName(x *etcdserverpb.Member) string { return cmp.Or(x.Name, strings.Join(x.PeerURLs, ",")) }

// unavailable gives etcd's errors their kinds.
func unavailable(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrMemberLearnerNotReady), errors.Is(err, rpctypes.ErrTooManyLearners),
		errors.Is(err, rpctypes.ErrUnhealthy), errors.Is(err, rpctypes.ErrMemberNotEnoughStarted):
		return fmt.Errorf("%w: %w", api.ErrNotCaughtUp, err)
	default:
		return fmt.Errorf("%w: %w", meta.ErrUnavailable, err)
	}
}
