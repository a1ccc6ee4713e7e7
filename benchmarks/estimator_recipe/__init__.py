"""What Taxiway's trainer is measured against: the taxi-fare lab of 2018, its recipe anew for TensorFlow 2.15.

Rows are decoded one by one inside tf.data, the columns go unscaled into a canned DNNRegressor with the optimizer it has
by default, and train_and_evaluate does the rest. What was slow about it is kept: that is what is measured.
"""
