"""The model of `moving.py` in four frameworks: two tables of embeddings and a dense layer that tells a rating's probability.

In each framework: ``step`` takes a batch and the framework's own gradients of it, ``feed`` steps by gradients that are given,
``arrays`` gives the weights by their names there, ``save`` writes the optimizer's state.
"""

import numpy as np

import adagrad

WIDTH, RATINGS = 16, 10
SETTINGS = {
    "learning_rate": 0.2,
    "initial_accumulator_value": 1e-6,
    "global_clipnorm": 0.2,
    "use_ema": True,
    "gradient_accumulation_steps": 4,
}
# What the users, the films, the kernel and the bias are called, in the order in which the model moves.
NAMES = {
    "keras": ("users/embeddings", "films/embeddings", "stars/kernel", "stars/bias"),
    "torch": ("users.weight", "films.weight", "stars.weight", "stars.bias"),
    "jax": ("tables/users", "tables/films", "stars/kernel", "stars/bias"),
    "numpy": ("users", "films", "kernel", "bias"),
}
TRANSPOSED = "torch"  # holds the kernel as (out, in), all others as (in, out)


def start(users, films):
    """The weights before the first step, in the order of `NAMES`."""
    rng = np.random.default_rng(0)
    shapes = (users, WIDTH), (films, WIDTH), (2 * WIDTH, RATINGS)
    return *(rng.normal(scale=0.1, size=shape).astype(np.float32) for shape in shapes), np.zeros(RATINGS, np.float32)


def probabilities(weights, users, films):
    """The probability of each rating, shape (batch, RATINGS), and what the dense layer was given."""
    table_of_users, table_of_films, kernel, bias = weights
    x = np.concatenate([table_of_users[users], table_of_films[films]], axis=1)
    logits = x @ kernel + bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True), x


class InNumpy:
    """By hand: the gradients are a few lines."""

    def __init__(self, weights, **state):
        self.weights = weights
        self.optimizer = adagrad.Adagrad(**SETTINGS)
        self.optimizer.build(weights)
        if state:
            self.optimizer.load(**state)

    def gradients(self, users, films, stars):
        slope, x = probabilities(self.weights.values(), users, films)
        slope[np.arange(len(stars)), stars] -= 1
        slope /= len(stars)
        of_x = slope @ self.weights["kernel"].T
        tables = adagrad.IndexedSlices(of_x[:, :WIDTH], users), adagrad.IndexedSlices(of_x[:, WIDTH:], films)
        return *tables, x.T @ slope, slope.sum(axis=0)

    def step(self, *batch):
        self.feed(self.gradients(*batch))

    def feed(self, gradients):
        self.optimizer.apply(dict(zip(self.weights, gradients, strict=True)), self.weights)

    def arrays(self):
        return self.weights

    def save(self, path):
        self.optimizer.save(path)


class InKeras:
    """On the backend that KERAS_BACKEND names."""

    def __init__(self, weights, **state):
        import keras

        from adagrad.keras import Adagrad, Embedding

        inputs = [keras.Input((), dtype="int32") for _ in range(2)]
        tables = [Embedding(len(weights[f"{name}/embeddings"]), WIDTH, name=name) for name in ("users", "films")]
        rows = keras.layers.Concatenate()([table(ids) for table, ids in zip(tables, inputs, strict=True)])
        self.model = keras.Model(inputs, keras.layers.Dense(RATINGS, name="stars")(rows))
        variables = {variable.path: variable for variable in self.model.trainable_variables}
        self.variables = [variables[name] for name in NAMES["keras"]]
        for variable in self.variables:
            variable.assign(weights[variable.path])
        self.optimizer = Adagrad(**SETTINGS)
        self.model.compile(self.optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        self.optimizer.build(self.model.trainable_variables)
        if state:
            self.optimizer.load(**state)

    def step(self, users, films, stars):
        self.model.train_on_batch([users, films], stars)

    def feed(self, gradients):
        from keras.ops import convert_to_tensor as tensor

        users, films = (adagrad.IndexedSlices(tensor(g.values), tensor(g.indices)) for g in gradients[:2])
        self.optimizer.apply([users, films, *map(tensor, gradients[2:])], self.variables)

    def arrays(self):
        from keras.ops import convert_to_numpy

        return {variable.path: np.array(convert_to_numpy(variable.value)) for variable in self.variables}

    def save(self, path):
        self.optimizer.save(path)


class InTorch:
    """Tables with sparse gradients, and a linear layer."""

    def __init__(self, weights, **state):
        import torch

        from adagrad.torch import Adagrad

        self.torch = torch
        layers = {name: torch.nn.Embedding(*weights[f"{name}.weight"].shape, sparse=True) for name in ("users", "films")}
        self.model = torch.nn.ModuleDict({**layers, "stars": torch.nn.Linear(2 * WIDTH, RATINGS)})
        self.model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        settings = dict(SETTINGS)
        self.optimizer = Adagrad(self.model.named_parameters(), lr=settings.pop("learning_rate"), **settings)
        if state:
            self.optimizer.load(**state)

    def step(self, *batch):
        users, films, stars = (self.torch.from_numpy(column).long() for column in batch)
        rows = self.torch.cat([self.model["users"](users), self.model["films"](films)], dim=1)
        loss = self.torch.nn.functional.cross_entropy(self.model["stars"](rows), stars)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def feed(self, gradients):
        users, films, kernel, bias = gradients
        for layer, rows in (("users", users), ("films", films)):
            table = self.model[layer].weight
            ids, values = self.torch.from_numpy(rows.indices), self.torch.from_numpy(rows.values)
            table.grad = self.torch.sparse_coo_tensor(ids[None], values, table.shape, check_invariants=False)
        self.model["stars"].weight.grad = self.torch.from_numpy(kernel).T
        self.model["stars"].bias.grad = self.torch.from_numpy(bias)
        self.optimizer.step()

    def arrays(self):
        return {name: parameter.detach().numpy() for name, parameter in self.model.named_parameters()}

    def save(self, path):
        self.optimizer.save(path)


class InJax:
    """A compiled step whose gradients of the tables are the rows that the batch reads."""

    def __init__(self, weights, **state):
        import jax
        import jax.numpy as jnp
        import optax

        from adagrad.jax import Adagrad, value_and_row_grad

        self.model = {"tables": {}, "stars": {}}
        for name, array in weights.items():
            part, _, last = name.partition("/")
            self.model[part][last] = jnp.array(array)
        self.optimizer = Adagrad(**SETTINGS)
        self.state = self.optimizer.load(params=self.model, **state) if state else self.optimizer.init(self.model)

        def loss(stars, rows, labels):
            logits = jnp.concatenate([rows["users"], rows["films"]], axis=1) @ stars["kernel"] + stars["bias"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(model, state, ids, labels):
            _, stars, tables = value_and_row_grad(loss)(model["stars"], model["tables"], ids, labels)
            return self.optimizer.apply({"stars": stars, "tables": tables}, state, model)

        self._step = jax.jit(step, donate_argnums=(0, 1))

    def step(self, users, films, stars):
        self.model, self.state = self._step(self.model, self.state, {"users": users, "films": films}, stars)

    def feed(self, gradients):
        users, films, kernel, bias = gradients
        given = {"tables": {"users": users, "films": films}, "stars": {"kernel": kernel, "bias": bias}}
        self.model, self.state = self.optimizer.apply(given, self.state, self.model)

    def arrays(self):
        return {f"{part}/{last}": np.asarray(array) for part, inside in self.model.items() for last, array in inside.items()}

    def save(self, path):
        self.optimizer.save(path, self.state, self.model)


IN = {"keras": InKeras, "torch": InTorch, "jax": InJax, "numpy": InNumpy}
