/* Fixed-point and integer types of any width and streams, as tools for hardware have them.
 *
 * Under the vendor's tool (__SYNTHESIS__ or __VITIS_HLS__, or INFC_VENDOR_TYPES for its C simulation) these are the vendor's own ap_fixed,
 * ap_ufixed, ap_int, ap_uint and hls::stream. Under any other C++14 compiler with __int128 they are the types below, which compute the same:
 * widths of operands up to 64 bits, results up to 128.
 *
 * An ap_fixed<W, I, Q, O> is an integer of W bits times 2^(I - W). Operators give results that are exact; conversions round by Q and treat
 * what is out of range by O. hls::stream has a depth here, and its ends are coroutines if the program is run by hls::network. */
#ifndef INFC_HLS_H
#define INFC_HLS_H

#if defined(__SYNTHESIS__) || defined(__VITIS_HLS__) || defined(INFC_VENDOR_TYPES)

#include <ap_fixed.h>
#include <ap_int.h>
#include <hls_stream.h>
#define INFC_DEPTH(stream, depth)
#define INFC_RUN(name, ...) __VA_ARGS__
#define INFC_JOIN()

#else

#define INFC_SIMULATION 1
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <setjmp.h>
#include <type_traits>
#include <ucontext.h>
#include <vector>

enum ap_q_mode { AP_RND, AP_RND_ZERO, AP_RND_MIN_INF, AP_RND_INF, AP_RND_CONV, AP_TRN, AP_TRN_ZERO };
enum ap_o_mode { AP_SAT, AP_SAT_ZERO, AP_SAT_SYM, AP_WRAP };

namespace infc {

__extension__ typedef __int128 wide;
__extension__ typedef unsigned __int128 uwide;

constexpr int max(int a, int b) { return a > b ? a : b; }
constexpr int min(int a, int b) { return a < b ? a : b; }

/* The type that holds W bits. */
template <int W, bool S>
struct holder {
    typedef typename std::conditional<(W <= 8), int8_t, typename std::conditional<(W <= 16), int16_t,
            typename std::conditional<(W <= 32), int32_t, typename std::conditional<(W <= 64), int64_t, wide>::type>::type>::type>::type
        with_sign;
    typedef typename std::conditional<(W <= 8), uint8_t, typename std::conditional<(W <= 16), uint16_t,
            typename std::conditional<(W <= 32), uint32_t, typename std::conditional<(W <= 64), uint64_t, uwide>::type>::type>::type>::type
        without_sign;
    typedef typename std::conditional<S, with_sign, without_sign>::type type;
};

/* The low W bits of a number, with their sign if they have one. */
template <int W, bool S>
typename holder<W, S>::type low_bits(uwide v) {
    typedef typename holder<W, S>::type T;
    if (W == 8 * (int)sizeof(T)) return (T)v;
    if (W < 64) {
        const uint64_t up = (uint64_t)v << (64 - W % 64);
        return S ? (T)((int64_t)up >> (64 - W % 64)) : (T)(up >> (64 - W % 64));
    }
    const uwide mask = ((uwide)1 << (W % 128)) - 1, sign = (uwide)1 << (W - 1);
    v &= mask;
    if (S && (v & sign)) v |= ~mask;
    return (T)v;
}

/* The type in which results of W bits are computed. */
template <int W>
struct computed {
    typedef typename std::conditional<(W <= 32), int32_t, typename std::conditional<(W <= 64), int64_t, wide>::type>::type type;
    typedef typename std::conditional<(W <= 32), uint32_t, typename std::conditional<(W <= 64), uint64_t, uwide>::type>::type wraps;
};

/* v / 2^n, towards minus infinity. */
inline wide shift_down(wide v, int n) { return n > 127 ? (v < 0 ? -1 : 0) : v < 0 ? ~(~v >> n) : v >> n; }

/* Is one of the n lowest bits set? */
inline bool any_below(wide v, int n) { return n >= 128 ? v != 0 : n > 0 && ((uwide)v & (((uwide)1 << n) - 1)) != 0; }

template <int W, int I, bool S, ap_q_mode Q, ap_o_mode O>
struct fixed;

/* A number of bits for each C type. */
template <typename T>
struct native {
    static const bool is_int = std::is_integral<T>::value;
    static const int width = std::is_same<T, bool>::value ? 1 : (int)sizeof(T) * 8;
    static const bool is_signed = std::is_signed<T>::value && !std::is_same<T, bool>::value;
    typedef fixed<width, width, is_signed, AP_TRN, AP_WRAP> type;
};

/* A number between HIGH and LOW of another's bits. */
template <typename T>
struct bits_of {
    T &of;
    int high, low;
    uint64_t get() const { return (uint64_t)(((uwide)of.V >> low) & (((uwide)1 << (high - low + 1)) - 1)); }
    operator uint64_t() const { return get(); }
    int length() const { return high - low + 1; }
    bits_of &operator=(uint64_t v) {
        const uwide mask = (((uwide)1 << (high - low + 1)) - 1) << low;
        of.V = low_bits<T::width, T::is_signed>(((uwide)of.V & ~mask) | (((uwide)v << low) & mask));
        return *this;
    }
    bits_of &operator=(const bits_of &v) { return *this = v.get(); }
};

template <int W, int I, bool S, ap_q_mode Q = AP_TRN, ap_o_mode O = AP_WRAP>
struct fixed {
    static_assert(W >= 1 && W <= 128, "widths are 1 to 128 bits");
    static const int width = W, iwidth = I, F = W - I;
    static const bool is_signed = S;
    static const ap_q_mode qmode = Q;
    static const ap_o_mode omode = O;
    typename holder<W, S>::type V; /* the bits, as an integer */

    fixed() : V(0) {}
    template <int W2, int I2, bool S2, ap_q_mode Q2, ap_o_mode O2>
    fixed(const fixed<W2, I2, S2, Q2, O2> &x) { set((wide)x.V, x.F); }
    template <typename T, typename = typename std::enable_if<native<T>::is_int>::type>
    fixed(T x) { set((wide)x, 0); }
    fixed(float x) { set_double(x); }
    fixed(double x) { set_double(x); }
    /* The number v / 2^f. Numbers of 128 bits without a sign do not occur: products of 64 bits with a fraction are rounded from less. */
    void set(wide v, int f) {
        const int down = f - F;
        if (down > 0) {
            const bool half = (shift_down(v, down - 1) & 1) != 0, rest = any_below(v, down - 1), negative = v < 0;
            wide q = shift_down(v, down);
            if (rounds_up(half, rest, negative, (q & 1) != 0)) q++;
            limit(q, false);
        } else if (down == 0) {
            limit(v, false);
        } else {
            /* What is shifted out at the top is out of range of any W. */
            const wide up = down <= -128 ? 0 : (wide)((uwide)v << -down);
            const bool lost = down <= -128 ? v != 0 : shift_down(up, -down) != v;
            if (lost) out_of_range(up, v < 0);
            else limit(up, false);
        }
    }
    static bool rounds_up(bool half, bool rest, bool negative, bool odd) {
        switch (Q) {
        case AP_RND: return half;
        case AP_RND_ZERO: return half && (negative || rest);
        case AP_RND_MIN_INF: return half && rest;
        case AP_RND_INF: return half && (!negative || rest);
        case AP_RND_CONV: return half && (odd || rest);
        case AP_TRN: return false;
        case AP_TRN_ZERO: return negative && (half || rest);
        }
        return false;
    }
    static wide most() { return (wide)(((uwide)1 << (W - S)) - 1); }
    static wide least() { return S ? -most() - 1 : 0; }
    void limit(wide v, bool) {
        if (O == AP_WRAP || W >= 127) V = low_bits<W, S>((uwide)v);
        else if (v > most() || v < least()) out_of_range(v, v < 0);
        else if (O == AP_SAT_SYM && S && v == least()) V = (typename holder<W, S>::type)(v | 1);
        else V = (typename holder<W, S>::type)v;
    }
    void out_of_range(wide v, bool negative) {
        switch (O) {
        case AP_SAT: V = (typename holder<W, S>::type)(negative ? least() : most()); break;
        case AP_SAT_SYM: V = (typename holder<W, S>::type)(!negative ? most() : S ? least() | 1 : 0); break;
        case AP_SAT_ZERO: V = 0; break;
        case AP_WRAP: V = low_bits<W, S>((uwide)v); break;
        }
    }
    /* The 53 bits of a double are an integer. NaN and infinities have no meaning here. */
    void set_double(double x) {
        int exponent = 0;
        const double m = std::frexp(x, &exponent);
        set((wide)(int64_t)(m * 9007199254740992.0), 53 - exponent);
    }

    /* C types. */
    double to_double() const { return std::ldexp((double)V, -F); }
    float to_float() const { return std::ldexp((float)V, -F); }
    /* Towards 0, the low bits. */
    wide whole() const {
        if (F <= 0) return (wide)((uwide)(wide)V << -F);
        const wide q = shift_down((wide)V, F);
        return V < 0 && any_below((wide)V, F) ? q + 1 : q;
    }
    int to_int() const { return (int)low_bits<32, true>((uwide)whole()); }
    unsigned to_uint() const { return (unsigned)low_bits<32, false>((uwide)whole()); }
    int64_t to_int64() const { return (int64_t)low_bits<64, true>((uwide)whole()); }
    uint64_t to_uint64() const { return (uint64_t)low_bits<64, false>((uwide)whole()); }
    explicit operator bool() const { return V != 0; }
    explicit operator double() const { return to_double(); }
    explicit operator float() const { return to_float(); }
    template <typename T, typename = typename std::enable_if<native<T>::is_int && !std::is_same<T, bool>::value>::type>
    explicit operator T() const { return (T)to_int64(); }
    bool operator!() const { return V == 0; }

    /* Bits. */
    int length() const { return W; }
    bits_of<fixed> range(int high, int low) { return bits_of<fixed>{*this, high, low}; }
    bits_of<fixed> range() { return range(W - 1, 0); }
    bits_of<fixed> operator()(int high, int low) { return range(high, low); }
    bits_of<fixed> operator[](int i) { return range(i, i); }
    uint64_t range(int high, int low) const { return bits_of<const fixed>{*this, high, low}.get(); }
    bool operator[](int i) const { return ((uwide)V >> i & 1) != 0; }

    /* Shifts keep the type: bits fall out. */
    template <typename T>
    fixed operator<<(T n) const { return shifted((int)n); }
    template <typename T>
    fixed operator>>(T n) const { return shifted(-(int)n); }
    fixed shifted(int up) const {
        fixed r;
        r.V = up <= 0 ? low_bits<W, S>((uwide)shift_down((wide)V, -up)) : up > 127 ? 0 : low_bits<W, S>((uwide)(wide)V << up);
        return r;
    }
    fixed operator~() const {
        fixed r;
        r.V = low_bits<W, S>(~(uwide)(wide)V);
        return r;
    }

    template <typename T> fixed &operator+=(const T &x) { return *this = *this + x; }
    template <typename T> fixed &operator-=(const T &x) { return *this = *this - x; }
    template <typename T> fixed &operator*=(const T &x) { return *this = *this * x; }
    template <typename T> fixed &operator/=(const T &x) { return *this = *this / x; }
    template <typename T> fixed &operator%=(const T &x) { return *this = *this % x; }
    template <typename T> fixed &operator&=(const T &x) { return *this = *this & x; }
    template <typename T> fixed &operator|=(const T &x) { return *this = *this | x; }
    template <typename T> fixed &operator^=(const T &x) { return *this = *this ^ x; }
    fixed &operator<<=(int n) { return *this = *this << n; }
    fixed &operator>>=(int n) { return *this = *this >> n; }
    fixed &operator++() { return *this += 1; }
    fixed &operator--() { return *this -= 1; }
    fixed operator++(int) {
        fixed r = *this;
        ++*this;
        return r;
    }
    fixed operator--(int) {
        fixed r = *this;
        --*this;
        return r;
    }
};

/* Widths of results. */
template <int W, int I, bool S, int W2, int I2, bool S2>
struct result {
    static const int F = W - I, F2 = W2 - I2;
    static const int whole = max(I + (S2 && !S), I2 + (S && !S2)), part = max(F, F2);
    static const bool sign = S || S2;
    typedef fixed<W + W2, I + I2, sign> product;
    typedef fixed<whole + 1 + part, whole + 1, sign> sum;
    typedef fixed<whole + 1 + part, whole + 1, true> difference;
    typedef fixed<whole + part, whole, sign> bits;
    typedef fixed<S2 + W + max(F2, 0), S2 + I + F2, sign> quotient;
    typedef fixed<min(W, W2 + (!S2 && S)), min(W, W2 + (!S2 && S)), S> remainder;
};

#define INFC_TWO template <int W, int I, bool S, ap_q_mode Q, ap_o_mode O, int W2, int I2, bool S2, ap_q_mode Q2, ap_o_mode O2>
#define INFC_A const fixed<W, I, S, Q, O> &a
#define INFC_B const fixed<W2, I2, S2, Q2, O2> &b
#define INFC_R(kind) typename result<W, I, S, W2, I2, S2>::kind

/* Both with the point at the same place. */
#define INFC_ALIGNED(op, kind)                                                                               \
    INFC_TWO INFC_R(kind) operator op(INFC_A, INFC_B) {                                                      \
        typedef INFC_R(kind) R;                                                                              \
        R r;                                                                                                 \
        typedef typename computed<R::width>::type C;                                                        \
        typedef typename computed<R::width>::wraps U;                                                       \
        r.V = low_bits<R::width, R::is_signed>((uwide)(wide)(C)(((U)(C)a.V << (R::F - a.F)) op ((U)(C)b.V << (R::F - b.F)))); \
        return r;                                                                                            \
    }
INFC_ALIGNED(+, sum)
INFC_ALIGNED(-, difference)
INFC_ALIGNED(&, bits)
INFC_ALIGNED(|, bits)
INFC_ALIGNED(^, bits)

INFC_TWO INFC_R(product) operator*(INFC_A, INFC_B) {
    typedef INFC_R(product) R;
    R r;
    typedef typename computed<R::width>::type C;
    typedef typename computed<R::width>::wraps U;
    r.V = low_bits<R::width, R::is_signed>((uwide)(wide)(C)((U)(C)a.V * (U)(C)b.V));
    return r;
}
/* Towards 0; division by 0 has no meaning. */
INFC_TWO INFC_R(quotient) operator/(INFC_A, INFC_B) {
    typedef INFC_R(quotient) R;
    R r;
    r.V = b.V == 0 ? 0 : low_bits<R::width, R::is_signed>((uwide)((wide)((uwide)(wide)a.V << max(b.F, 0)) / (wide)b.V));
    return r;
}
INFC_TWO INFC_R(remainder) operator%(INFC_A, INFC_B) {
    static_assert(W == I && W2 == I2, "only integers have remainders");
    typedef INFC_R(remainder) R;
    R r;
    r.V = b.V == 0 ? 0 : low_bits<R::width, R::is_signed>((uwide)((wide)a.V % (wide)b.V));
    return r;
}

/* Numbers are compared, whatever their types. */
#define INFC_COMPARE(op)                                                                                   \
    INFC_TWO bool operator op(INFC_A, INFC_B) {                                                            \
        return ((wide)((uwide)(wide)a.V << (max(a.F, b.F) - a.F))) op((wide)((uwide)(wide)b.V << (max(a.F, b.F) - b.F))); \
    }
INFC_COMPARE(==)
INFC_COMPARE(!=)
INFC_COMPARE(<)
INFC_COMPARE(<=)
INFC_COMPARE(>)
INFC_COMPARE(>=)

/* With numbers of C types on one side. */
#define INFC_NATIVE(op)                                                                                                             \
    template <int W, int I, bool S, ap_q_mode Q, ap_o_mode O, typename T, typename = typename std::enable_if<native<T>::is_int>::type> \
    auto operator op(INFC_A, T b)->decltype(a op typename native<T>::type(b)) { return a op typename native<T>::type(b); }          \
    template <int W, int I, bool S, ap_q_mode Q, ap_o_mode O, typename T, typename = typename std::enable_if<native<T>::is_int>::type> \
    auto operator op(T b, INFC_A)->decltype(typename native<T>::type(b) op a) { return typename native<T>::type(b) op a; }
INFC_NATIVE(+)
INFC_NATIVE(-)
INFC_NATIVE(*)
INFC_NATIVE(/)
INFC_NATIVE(%)
INFC_NATIVE(&)
INFC_NATIVE(|)
INFC_NATIVE(^)
INFC_NATIVE(==)
INFC_NATIVE(!=)
INFC_NATIVE(<)
INFC_NATIVE(<=)
INFC_NATIVE(>)
INFC_NATIVE(>=)

template <int W, int I, bool S, ap_q_mode Q, ap_o_mode O>
fixed<W + 1, I + 1, true> operator-(INFC_A) {
    fixed<W + 1, I + 1, true> r;
    r.V = low_bits<W + 1, true>(0 - (uwide)(wide)a.V);
    return r;
}

#undef INFC_TWO
#undef INFC_A
#undef INFC_B
#undef INFC_R
#undef INFC_ALIGNED
#undef INFC_COMPARE
#undef INFC_NATIVE

} // namespace infc

template <int W, int I, ap_q_mode Q = AP_TRN, ap_o_mode O = AP_WRAP>
struct ap_fixed : infc::fixed<W, I, true, Q, O> {
    using infc::fixed<W, I, true, Q, O>::fixed;
    ap_fixed() {}
    ap_fixed(const infc::fixed<W, I, true, Q, O> &x) : infc::fixed<W, I, true, Q, O>(x) {}
};
template <int W, int I, ap_q_mode Q = AP_TRN, ap_o_mode O = AP_WRAP>
struct ap_ufixed : infc::fixed<W, I, false, Q, O> {
    using infc::fixed<W, I, false, Q, O>::fixed;
    ap_ufixed() {}
    ap_ufixed(const infc::fixed<W, I, false, Q, O> &x) : infc::fixed<W, I, false, Q, O>(x) {}
};
/* Integers: what has a fraction is converted to them as in C, towards 0. */
template <int W>
struct ap_int : infc::fixed<W, W, true, AP_TRN_ZERO> {
    using infc::fixed<W, W, true, AP_TRN_ZERO>::fixed;
    ap_int() {}
    ap_int(const infc::fixed<W, W, true, AP_TRN_ZERO> &x) : infc::fixed<W, W, true, AP_TRN_ZERO>(x) {}
};
template <int W>
struct ap_uint : infc::fixed<W, W, false, AP_TRN_ZERO> {
    using infc::fixed<W, W, false, AP_TRN_ZERO>::fixed;
    ap_uint() {}
    ap_uint(const infc::fixed<W, W, false, AP_TRN_ZERO> &x) : infc::fixed<W, W, false, AP_TRN_ZERO>(x) {}
};

namespace hls {

/* What a coroutine waits for. */
struct waiting {
    const char *name;
    virtual bool readable() const = 0;
    virtual bool writable() const = 0;
    explicit waiting(const char *n) : name(n) {}
    virtual ~waiting() {}
};

/* Runs functions at the same time, as hardware does: coroutines that wait where a stream is empty or full, and for no reason at random. */
class network {
    struct task {
        const char *name;
        std::function<void()> run;
        std::vector<char> stack;
        ucontext_t context; /* how it begins; from then on, jumps are faster */
        jmp_buf jump;
        const waiting *on = nullptr;
        bool reads = false, started = false, done = false;
    };
    std::vector<std::unique_ptr<task>> tasks;
    task *now = nullptr;
    jmp_buf home;
    uint64_t random;
    unsigned stalls; /* of 256 */
    static network *&active() {
        static network *n = nullptr;
        return n;
    }
    static void enter() {
        network *n = active();
        n->now->run();
        n->now->done = true;
        _longjmp(n->home, 1);
    }
    unsigned draw() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return (unsigned)(random >> 32);
    }
    __attribute__((noinline)) void leave() {
        if (!_setjmp(now->jump)) _longjmp(home, 1);
    }
    __attribute__((noinline)) void resume(task &t) {
        now = &t;
        if (_setjmp(home)) return;
        if (t.started) _longjmp(t.jump, 1);
        t.started = true;
        setcontext(&t.context);
    }

public:
    /* Of 256 uses of a stream so many wait although they need not. */
    network(uint64_t seed, unsigned of_256) : random(seed * 0x9e3779b97f4a7c15u | 1), stalls(of_256) { active() = this; }
    ~network() { active() = nullptr; }
    static network *current() { return active(); }
    void add(const char *name, std::function<void()> run) {
        tasks.emplace_back(new task);
        task &t = *tasks.back();
        t.name = name;
        t.run = std::move(run);
        t.stack.resize(1 << 17);
        getcontext(&t.context);
        t.context.uc_stack.ss_sp = t.stack.data();
        t.context.uc_stack.ss_size = t.stack.size();
        t.context.uc_link = nullptr;
        makecontext(&t.context, enter, 0);
    }
    /* Until all are done; false if none can go on. */
    bool run() {
        for (size_t open = tasks.size(); open > 0;) {
            bool any = false;
            for (size_t k = 0, first = draw() % tasks.size(); k < tasks.size(); k++) {
                task &t = *tasks[(first + k) % tasks.size()];
                if (t.done || (t.on && !(t.reads ? t.on->readable() : t.on->writable()))) continue;
                any = true;
                resume(t);
                open -= t.done;
            }
            if (!any) return false;
        }
        return true;
    }
    /* What each waits for, after run has failed. */
    void report() const {
        for (const auto &t : tasks)
            if (!t->done) std::fprintf(stderr, "%s waits for %s '%s'\n", t->name, t->reads ? "data in" : "room in", t->on ? t->on->name : "");
    }
    void wait(const waiting *on, bool reads) {
        if (draw() % 256 < stalls) {
            now->on = nullptr;
            leave();
        }
        now->on = on;
        now->reads = reads;
        while (!(reads ? on->readable() : on->writable())) leave();
        now->on = nullptr;
    }
};

/* First in, first out. Without a network it holds any number of elements, and an empty one that is read is an error. */
template <typename T>
class stream : waiting {
    std::deque<T> data;
    size_t depth = 2;
    bool readable() const override { return !data.empty(); }
    bool writable() const override { return data.size() < depth; }

public:
    explicit stream(const char *name = "stream") : waiting(name) {}
    stream(const stream &) = delete;
    stream &operator=(const stream &) = delete;
    void set_depth(size_t n) { depth = n; }
    bool empty() const { return data.empty(); }
    size_t size() const { return data.size(); }
    T read() {
        if (network *n = network::current()) n->wait(this, true);
        if (data.empty()) {
            std::fprintf(stderr, "stream '%s' is read while it is empty\n", name);
            std::exit(3);
        }
        T x = data.front();
        data.pop_front();
        return x;
    }
    void read(T &x) { x = read(); }
    void write(const T &x) {
        if (network *n = network::current()) n->wait(this, false);
        data.push_back(x);
    }
    void operator>>(T &x) { x = read(); }
    void operator<<(const T &x) { write(x); }
};

} // namespace hls

/* Gives a stream its depth, which the vendor's tool reads in a pragma. */
#define INFC_DEPTH(stream, depth) stream.set_depth(depth)
/* A process: called, or run beside the others. */
#define INFC_RUN(name, ...)                                                                          \
    do {                                                                                             \
        if (hls::network *n = hls::network::current()) n->add(#name, [&] { __VA_ARGS__; });          \
        else { __VA_ARGS__; }                                                                        \
    } while (0)
/* All processes are there: they run until they are done. */
#define INFC_JOIN()                                                                                  \
    do {                                                                                             \
        hls::network *n = hls::network::current();                                                   \
        if (n && !n->run()) {                                                                        \
            n->report();                                                                             \
            std::exit(4);                                                                            \
        }                                                                                            \
    } while (0)

#endif
#endif
