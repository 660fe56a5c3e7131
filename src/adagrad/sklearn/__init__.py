"""Adagrad for scikit-learn: linear models that learn online, one example a step, or in mini-batches.

>>> from adagrad.sklearn import AdagradClassifier
>>> X = [[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [2.0, 0.0]]
>>> model = AdagradClassifier(learning_rate=0.5).fit(X, ["sour", "sweet", "sour", "sweet"])
>>> model.predict([[3.0, 0.0]]).tolist()
['sweet']
"""

from adagrad.sklearn.classifier import AdagradClassifier
from adagrad.sklearn.regressor import AdagradRegressor

__all__ = ["AdagradClassifier", "AdagradRegressor"]
